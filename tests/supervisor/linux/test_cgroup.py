from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import is_alive
from mmsup.supervisor.linux.cgroup import Cgroup, CgroupUsage, kill, parse_field, read_file, remove_all, write_file


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        yield process
        process.kill()


def folder_of(path: Path, name: str, *pids: int) -> Path:
    """A folder that lists these processes, as the kernel's would."""
    (path / name).mkdir()
    (path / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return path / name


def test_no_group_has_nothing_to_say_and_nothing_to_end() -> None:
    group = Cgroup(())
    assert (group.name, group.procs_files, group.cap_bytes, group.read()) == ("", (), None, None)
    assert group.kill()
    assert group.remove()


def test_a_group_names_its_files(tmp_path: Path) -> None:
    group = Cgroup([tmp_path / "memory" / "w1.2", tmp_path / "pids" / "w1.2"], "limit")
    assert group.name == "w1.2"
    assert group.procs_files == (f"{tmp_path}/memory/w1.2/cgroup.procs", f"{tmp_path}/pids/w1.2/cgroup.procs")


@pytest.mark.parametrize(
    ("limit", "cap"), [("1000\n", 1000), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
)
def test_a_cap_is_what_the_kernel_says_it_is(tmp_path: Path, limit: str, cap: int | None) -> None:
    (tmp_path / "limit").write_text(limit)
    assert Cgroup([tmp_path], "limit").cap_bytes == cap
    assert Cgroup([tmp_path / "gone"], "limit").cap_bytes is None


def test_the_counters_of_a_group_that_is_gone_are_none(tmp_path: Path) -> None:
    def read(folder: Path) -> CgroupUsage:
        return CgroupUsage(int((folder / "usage").read_text()), 0, 0, 0)

    assert Cgroup([tmp_path], "", read).read() is None
    (tmp_path / "usage").write_text("5")
    assert Cgroup([tmp_path], "", read).read() == CgroupUsage(5, 0, 0, 0)


def test_the_counters_of_a_group_that_is_removed_while_they_are_read_are_none(tmp_path: Path) -> None:
    def read(_: Path) -> CgroupUsage:
        raise OSError(errno.ENODEV, "No such device")

    assert Cgroup([tmp_path], "", read).read() is None


@pytest.mark.slow
def test_everybody_in_every_folder_is_killed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    folders = [folder_of(tmp_path, "memory"), folder_of(tmp_path, "pids", sleeper.pid)]
    assert not kill(folders)
    assert sleeper.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_freezer_is_closed_for_the_signal_and_open_afterwards(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    folder = folder_of(tmp_path, "freezer", sleeper.pid)
    (folder / "freezer.state").write_text("THAWED")
    kill([folder])
    assert (folder / "freezer.state").read_text() == "THAWED"
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_group_with_a_kill_file_is_ended_by_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "w1.1", os.getppid())
    (folder / "cgroup.kill").write_text("")
    assert not kill([folder])
    assert (folder / "cgroup.kill").read_text() == "1"
    assert is_alive(os.getppid())


def test_who_kills_is_not_killed_and_an_empty_group_is_done(tmp_path: Path) -> None:
    assert kill([folder_of(tmp_path, "w1.1", os.getpid()), folder_of(tmp_path, "w1.2"), tmp_path / "gone"])


def test_removing_is_done_when_all_are_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert remove_all([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "child").mkdir()
    (tmp_path / "empty").mkdir()
    assert not remove_all([tmp_path / "full", tmp_path / "empty"])
    assert not (tmp_path / "empty").exists()


def test_a_removal_that_is_forbidden_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        remove_all([tmp_path / "file"])


def test_files_of_the_kernel_are_read_and_written_without_making_any(tmp_path: Path) -> None:
    assert not write_file(tmp_path / "absent", "1")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "there").write_text("")
    assert write_file(tmp_path / "there", "1")
    assert read_file(tmp_path / "there") == "1"
    assert read_file(tmp_path / "absent") == ""
    assert not write_file(Path("/dev/full"), "1")
    assert parse_field("oom 3\noom_kill 2\n", "oom_kill") == 2
    assert parse_field("oom 3\n", "oom_kill") == 0


def test_what_a_group_uses_is_read_from_one_file(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text("4096\n")
    assert Cgroup([tmp_path], usage="usage").usage_bytes() == 4096
    assert Cgroup([tmp_path / "gone"], usage="usage").usage_bytes() is None
    assert Cgroup(()).usage_bytes() is None
