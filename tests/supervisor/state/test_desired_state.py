from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsup.supervisor.state.desired_state import SIZE_LIMIT_BYTES, DesiredModel, DesiredState
from mmsup.supervisor.state.kept_aside import kept_aside


def test_a_change_is_on_disk_when_set_returns(tmp_path: Path) -> None:
    DesiredState(tmp_path / "wanted.json", "explicit").set("bert", DesiredModel(up=True, config="{}"))
    again = DesiredState(tmp_path / "wanted.json", "explicit")
    assert again.get("bert") == DesiredModel(up=True, config="{}")
    assert again.names() == ["bert"]
    assert again.get("other") is None


def test_another_control_mode_starts_without_desired_models(tmp_path: Path) -> None:
    DesiredState(tmp_path / "wanted.json", "explicit").set("bert", DesiredModel(up=True))
    assert DesiredState(tmp_path / "wanted.json", "none").names() == []


def test_an_orderly_stop_forgets(tmp_path: Path) -> None:
    wanted = DesiredState(tmp_path / "wanted.json", "none")
    wanted.set("bert", DesiredModel(up=False))
    wanted.clear()
    wanted.clear()
    assert DesiredState(tmp_path / "wanted.json", "none").names() == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is cut or damaged"),
        ("{", "is cut or damaged"),
        ("[]", "is cut or damaged"),
        ("null", "is cut or damaged"),
        ("\x00\x00", "is cut or damaged"),
        ("[" * 200_000, "is cut or damaged"),
        ('{"format": 1}', "is cut or damaged"),
        ('{"format": 2, "mode": "none", "models": {}}', "has format 2, this version reads 1"),
    ],
)
def test_a_file_that_cannot_be_read_is_kept_aside_and_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "wanted.json"
    path.write_text(text)
    wanted = DesiredState(path, "none")
    assert wanted.names() == []
    assert wanted.problem.startswith(f"wanted.json {reason}: it is kept as wanted.json.kept-1")
    wanted.set("bert", DesiredModel(up=False))
    wanted.clear()
    assert (tmp_path / "wanted.json.kept-1").read_text() == text
    assert kept_aside(tmp_path) == ["wanted.json.kept-1"]


def test_a_sparse_file_of_gigabytes_is_kept_aside_unread(tmp_path: Path) -> None:
    path = tmp_path / "wanted.json"
    path.touch()
    os.truncate(path, 3 << 30)
    wanted = DesiredState(path, "none")
    assert wanted.problem.startswith("wanted.json is larger than 16 MiB: it is kept as wanted.json.kept-1")
    assert (tmp_path / "wanted.json.kept-1").stat().st_size == 3 << 30


def test_what_the_next_start_would_refuse_to_read_is_not_saved(tmp_path: Path) -> None:
    wanted = DesiredState(tmp_path / "wanted.json", "none")
    wanted.set("bert", DesiredModel(up=True, config="{}"))
    with pytest.raises(OSError, match="exceed 16 MiB"):
        wanted.set("large", DesiredModel(up=True, config="x" * SIZE_LIMIT_BYTES))
    assert DesiredState(tmp_path / "wanted.json", "none").names() == wanted.names() == ["bert"]


def test_each_file_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "wanted.json").write_text(str(number))
        DesiredState(tmp_path / "wanted.json", "none")
    assert [(tmp_path / each).read_text() for each in kept_aside(tmp_path)] == ["0", "1", "2"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_that_is_no_file_is_kept_aside_too(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "wanted.json")
    assert "is no plain file" in DesiredState(tmp_path / "wanted.json", "none").problem
    assert kept_aside(tmp_path) == ["wanted.json.kept-1"]


def test_a_newer_file_that_cannot_be_renamed_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wanted.json"
    path.write_text('{"format": 2}')

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    wanted = DesiredState(path, "none")
    with pytest.raises(OSError, match=r"wanted.json has format 2.*until the file is moved away"):
        wanted.set("bert", DesiredModel(up=True))
    wanted.clear()
    assert path.read_text() == '{"format": 2}'


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
def test_a_write_that_fails_leaves_the_state_before(
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
