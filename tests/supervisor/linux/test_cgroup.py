from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import is_alive
from mmsup.supervisor.linux import cgroup
from mmsup.supervisor.linux.cgroup import (
    Cgroup,
    CgroupUsage,
    has_lost_main_thread,
    is_member,
    kill,
    parse_field,
    read_file,
    remove_all,
    write_file,
)


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


def test_without_a_group_every_counter_is_none_and_nothing_is_killed() -> None:
    group = Cgroup(())
    assert (group.name, group.procs_files, group.cap_bytes, group.read()) == ("", (), None, None)
    assert group.kill()
    assert group.remove()


def test_a_group_returns_its_procs_files(tmp_path: Path) -> None:
    group = Cgroup([tmp_path / "memory" / "w1.2", tmp_path / "pids" / "w1.2"], "limit")
    assert group.name == "w1.2"
    assert group.procs_files == (f"{tmp_path}/memory/w1.2/cgroup.procs", f"{tmp_path}/pids/w1.2/cgroup.procs")


@pytest.mark.parametrize(
    ("limit", "cap"), [("1000\n", 1000), ("max\n", None), ("9223372036854771712\n", None), ("", None)]
)
def test_the_limit_is_read_from_the_kernel(tmp_path: Path, limit: str, cap: int | None) -> None:
    (tmp_path / "limit").write_text(limit)
    assert Cgroup([tmp_path], "limit").cap_bytes == cap
    assert Cgroup([tmp_path / "gone"], "limit").cap_bytes is None


def test_the_counters_of_a_removed_group_are_none(tmp_path: Path) -> None:
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
def test_all_processes_in_all_folders_are_killed(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    folders = [folder_of(tmp_path, "memory"), folder_of(tmp_path, "pids", sleeper.pid)]
    assert not kill(folders)
    assert sleeper.wait(10) == -signal.SIGKILL


@pytest.mark.slow
def test_a_group_is_frozen_for_the_signal_and_thawed_afterwards(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    folder = folder_of(tmp_path, "freezer", sleeper.pid)
    (folder / "freezer.state").write_text("THAWED")
    kill([folder])
    assert (folder / "freezer.state").read_text() == "THAWED"
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_group_with_cgroup_kill_is_killed_by_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "w1.1", os.getppid())
    (folder / "cgroup.kill").write_text("")
    assert not kill([folder])
    assert (folder / "cgroup.kill").read_text() == "1"
    assert is_alive(os.getppid())


def test_the_caller_is_not_killed_and_an_empty_group_is_done(tmp_path: Path) -> None:
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


def test_files_of_the_kernel_are_read_and_written_but_never_created(tmp_path: Path) -> None:
    assert not write_file(tmp_path / "absent", "1")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "there").write_text("")
    assert write_file(tmp_path / "there", "1")
    assert read_file(tmp_path / "there") == "1"
    assert read_file(tmp_path / "absent") == ""
    assert not write_file(Path("/dev/full"), "1")
    assert parse_field("oom 3\noom_kill 2\n", "oom_kill") == 2
    assert parse_field("oom 3\n", "oom_kill") == 0


def test_a_process_whose_main_thread_alone_has_ended_has_not_left_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import ctypes, threading
main = threading.main_thread().native_id
def tell():
    while open(f"/proc/self/task/{main}/stat").read().rpartition(") ")[2][0] != "Z":
        pass
    print("ended", flush=True)
    threading.Event().wait()
threading.Thread(target=tell).start()
ctypes.CDLL(None).syscall(60, 0)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ended\n"
            tid = next(int(each) for each in os.listdir(f"/proc/{process.pid}/task") if int(each) != process.pid)
            own = read_file(Path(f"/proc/{tid}/cgroup"))
            monkeypatch.setattr(cgroup, "is_member", lambda text, _: text == own)
            assert has_lost_main_thread(process.pid)
            assert Cgroup([tmp_path]).holds(process.pid)
            monkeypatch.setattr(cgroup, "is_member", lambda *_: False)
            assert not Cgroup([tmp_path]).holds(process.pid)
        finally:
            process.kill()


def test_the_usage_is_read_from_one_file(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text("4096\n")
    assert Cgroup([tmp_path], usage="usage").usage_bytes() == 4096
    assert Cgroup([tmp_path / "gone"], usage="usage").usage_bytes() is None
    assert Cgroup(()).usage_bytes() is None


@pytest.mark.parametrize(
    ("text", "folders", "is_in"),
    [
        ("0::/system.slice/mmsup_1/w7.3\n", ["/sys/fs/cgroup/system.slice/mmsup_1/w7.3"], True),
        ("0::/../../mmsup_1/w7.3\n", ["/sys/fs/cgroup/mmsup_1/w7.3"], True),
        ("0::/system.slice/mmsup_1/core\n", ["/sys/fs/cgroup/system.slice/mmsup_1/w7.3"], False),
        ("4:memory:/mmsup_1/w7.3\n2:pids:/mmsup_1/w7.3\n0::/\n", ["/m/mmsup_1/w7.3", "/p/mmsup_1/w7.3"], True),
        ("4:memory:/\n2:pids:/mmsup_1/w7.3\n0::/\n", ["/m/mmsup_1/w7.3", "/p/mmsup_1/w7.3"], False),
        ("4:memory:/mmsup_1/w17.3\n", ["/m/mmsup_1/w7.3"], False),
        ("4:memory:/mmsup_1/w7.3\n2:freezer:/mine\n", ["/m/mmsup_1/w7.3", "/freezer/mmsup_1/w7.3"], True),
        ("4:memory:/\n2:freezer:/mmsup_1/w7.3\n", ["/m/mmsup_1/w7.3", "/freezer/mmsup_1/w7.3"], False),
        ("0::/\n", [], True),
    ],
)
def test_a_process_is_in_its_group_only_if_it_is_in_every_hierarchy_that_limits(
    text: str, folders: list[str], *, is_in: bool
) -> None:
    assert is_member(text, [Path(each) for each in folders]) is is_in
