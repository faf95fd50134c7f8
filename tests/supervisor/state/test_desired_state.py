from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmsup.supervisor.state.desired_state import DesiredModel, DesiredState


def test_a_wish_is_on_disk_when_put_returns(tmp_path: Path) -> None:
    DesiredState(tmp_path / "wanted.json", "explicit").set("bert", DesiredModel(up=True, config="{}"))
    again = DesiredState(tmp_path / "wanted.json", "explicit")
    assert again.get("bert") == DesiredModel(up=True, config="{}")
    assert again.names() == ["bert"]
    assert again.get("other") is None


def test_another_control_mode_begins_without_wishes(tmp_path: Path) -> None:
    DesiredState(tmp_path / "wanted.json", "explicit").set("bert", DesiredModel(up=True))
    assert DesiredState(tmp_path / "wanted.json", "none").names() == []


def test_an_orderly_stop_forgets(tmp_path: Path) -> None:
    wanted = DesiredState(tmp_path / "wanted.json", "none")
    wanted.set("bert", DesiredModel(up=False))
    wanted.clear()
    wanted.clear()
    assert DesiredState(tmp_path / "wanted.json", "none").names() == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 2, "mode": "none", "models": {}}', '{"format": 1}']
)
def test_a_file_that_is_none_of_ours_is_no_wish(tmp_path: Path, text: str) -> None:
    (tmp_path / "wanted.json").write_text(text)
    assert DesiredState(tmp_path / "wanted.json", "none").names() == []


def test_an_orderly_stop_on_a_disk_that_refuses_is_taken_for_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = DesiredState(tmp_path / "wanted.json", "none")
    wanted.set("bert", DesiredModel(up=True))

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    wanted.clear()
    assert wanted.names() == []
    assert DesiredState(tmp_path / "wanted.json", "none").names() == ["bert"]


@pytest.mark.parametrize(("owner", "operation"), [(os, "fsync"), (Path, "replace")])
def test_a_write_that_fails_leaves_what_was_wished_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, operation: str
) -> None:
    wanted = DesiredState(tmp_path / "wanted.json", "none")
    wanted.set("bert", DesiredModel(up=True))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, operation, fail)
    with pytest.raises(OSError, match="No space"):
        wanted.set("bert", DesiredModel(up=False))
    assert wanted.get("bert") == DesiredModel(up=True)
    assert DesiredState(tmp_path / "wanted.json", "none").get("bert") == DesiredModel(up=True)
