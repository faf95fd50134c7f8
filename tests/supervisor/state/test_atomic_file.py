"""A state file is old or new, after a death at any point of its writing and after an error at any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.failpoint_file import FailpointFile, FailpointSite
from mmsup.ipc.failpoints import POINTS, FailpointAction
from mmsup.supervisor.state import atomic_file
from mmsup.supervisor.state.desired_state import DesiredModel, DesiredState

WRITING = tuple(name for name in POINTS if name.startswith("brain.file_") and name != "brain.file_removed")
PUT = """
import sys
from pathlib import Path
from mmsup.ipc.failpoints import INHERITED, arm, open_control_page
from mmsup.supervisor.state.desired_state import DesiredModel, DesiredState
arm({INHERITED: open_control_page(sys.argv[1])}, "brain")
desired_state = DesiredState(Path(sys.argv[2]), "explicit")
try:
    if sys.argv[3] == "clear":
        desired_state.clear()
    else:
        desired_state.set("new", DesiredModel(up=True))
except OSError as error:
    print("refused", error.errno)
else:
    print("done", *desired_state.names())
"""
OLD, NEW = ["old"], ["new", "old"]


def change(made: FailpointFile, path: Path, what: str = "put") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PUT, str(made.path), str(path), what]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "state" / "wanted.json"
    DesiredState(made, "explicit").set("old", DesiredModel(up=True, config="{}"))
    return made


def names(path: Path) -> list[str]:
    """What the next brain finds; a torn file would have none."""
    return DesiredState(path, "explicit").names()


@pytest.mark.slow
@pytest.mark.fault("F30")
@pytest.mark.parametrize("point", WRITING)
def test_a_death_at_any_point_leaves_the_old_file_or_the_new_one(tmp_path: Path, path: Path, point: str) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.KILL, FailpointSite("brain", point))
    assert change(made, path).returncode == -signal.SIGKILL
    renamed = WRITING.index(point) >= WRITING.index("brain.file_renamed")
    assert names(path) == (NEW if renamed else OLD)
    assert change(made, path).stdout == "done new old\n", "what was left is in the way"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("point", [name for name in WRITING if POINTS[name].error])
def test_an_error_at_any_point_is_a_refusal_with_the_old_file_or_no_error(
    tmp_path: Path, path: Path, point: str
) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.RAISE, FailpointSite("brain", point))
    done = change(made, path)
    if done.stdout.startswith("refused"):
        assert names(path) == OLD
    else:
        assert done.stdout == "done new old\n", done.stderr
        assert names(path) == NEW
    assert os.listdir(path.parent) == [path.name], "a refused file is left lying"


@pytest.mark.slow
def test_a_death_while_the_file_is_removed_leaves_none(tmp_path: Path, path: Path) -> None:
    made = FailpointFile(tmp_path / "range")
    made.order(FailpointAction.KILL, FailpointSite("brain", "brain.file_removed"))
    assert change(made, path, "clear").returncode == -signal.SIGKILL
    assert names(path) == []


@pytest.mark.slow
@pytest.mark.parametrize("order", [FailpointAction.KILL, FailpointAction.RAISE])
def test_a_directory_whose_creation_was_cut_off_is_no_obstacle(tmp_path: Path, order: FailpointAction) -> None:
    made, path = FailpointFile(tmp_path / "range"), tmp_path / "state" / "below" / "wanted.json"
    made.order(order, FailpointSite("brain", "brain.folder_made"), nth=2)
    done = change(made, path)
    assert made.fired
    assert (done.returncode, done.stdout) in ((-signal.SIGKILL, ""), (0, "refused 5\n"))
    assert names(path) == []
    assert change(made, path).stdout == "done new\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_that_is_missing_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "file"
    atomic_file.write(path, b"text")
    assert path.read_text() == "text"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    atomic_file.remove(path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        atomic_file.remove(path)
