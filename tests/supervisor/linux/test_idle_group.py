"""The group of processes that start: v1 in the real file system if this machine has it, v2 on recorded files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import wait_until
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend, set_up, tear_down
from mmsup.supervisor.linux.idle_group import IdleGroup, is_idle_group

TOP = f"mmsup_test_{os.getpid()}"
CPU = cgroup_backend.ROOT / "cpu"
needs_v1 = pytest.mark.skipif(not os.access(CPU / "cpu.idle", os.F_OK), reason="no v1 cpu hierarchy with cpu.idle here")
FORKS = "import subprocess, sys\nsubprocess.Popen(['sleep', '1000'])\nprint('in', flush=True)\nsys.stdin.read()"


def test_its_file_is_told_from_that_of_a_worker() -> None:
    assert is_idle_group("/sys/fs/cgroup/cpu/mmsup_1a2b_idle/cgroup.procs")
    assert is_idle_group("/sys/fs/cgroup/system.slice/mmsup.service/mmsup_1a2b/idle/cgroup.procs")
    assert not is_idle_group("/sys/fs/cgroup/cpu/mmsup_1a2b/w7.3/cgroup.procs")


@pytest.fixture
def v2(tmp_path: Path) -> IdleGroup:
    """The group beside a core, with the files that the kernel makes."""
    for name in ("core", "idle", "w1.1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("")
        (tmp_path / name / "cpu.idle").write_text("0\n")
    return IdleGroup(tmp_path / "idle", tmp_path / "core")


def test_v2_a_worker_is_idle_in_its_own_group_until_it_is_released(v2: IdleGroup) -> None:
    group = Cgroup([v2.folder.parent / "w1.1"])
    assert v2.admit(group) == group.procs_files
    assert (group.folders[0] / "cpu.idle").read_text().strip() == "1"
    v2.release(group)
    assert (group.folders[0] / "cpu.idle").read_text().strip() == "0"


def test_v2_a_process_is_moved_out_only_if_it_is_in_it(v2: IdleGroup) -> None:
    (v2.folder / "cgroup.procs").write_text("17\n")
    assert not v2.move_out((18,))
    assert (v2.home / "cgroup.procs").read_text() == ""
    assert v2.move_out((17, 18))
    assert (v2.home / "cgroup.procs").read_text() == "17"


def test_v2_what_is_killed_competes(v2: IdleGroup) -> None:
    """Behind others a killed process ends seconds later, on a machine that is busy."""
    group = Cgroup([v2.folder.parent / "w1.1"])
    with subprocess.Popen(["sleep", "1000"]) as process:
        (group.folders[0] / "cgroup.procs").write_text(f"{process.pid}\n")
        v2.admit(group)
        group.kill()
        assert (group.folders[0] / "cpu.idle").read_text().strip() == "0"
        process.kill()


def test_where_the_kernel_does_not_know_it_nothing_is_left(tmp_path: Path) -> None:
    idle = IdleGroup(tmp_path / "idle", tmp_path / "core")
    idle.make()  # a plain directory has no cpu.idle, as on Linux before 5.15
    assert not idle.exists
    assert not idle.folder.exists()


@pytest.fixture
def v1() -> Iterator[CgroupBackend]:
    made = set_up(TOP)
    try:
        yield made
    finally:
        assert tear_down(made)
        assert not (CPU / f"{TOP}_idle").exists()


def cpu_group(pid: int) -> str:
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return next(path for _, controllers, path in lines if "cpu" in controllers.split(","))


@needs_v1
@pytest.mark.cgroup1
@pytest.mark.slow
def test_v1_a_worker_leaves_it_with_all_that_it_started(v1: CgroupBackend) -> None:
    assert v1.idle is not None
    assert v1.description.endswith("starts yield")
    group = v1.create("w1.1", None)
    join = "import sys\nfor path in sys.argv[1:]: open(path, 'w').write('0')\n"
    command = [sys.executable, "-c", join + FORKS, *v1.idle.admit(group)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in\n"
        pids = group.pids()
        assert len(pids) == 2
        assert {cpu_group(each) for each in pids} == {f"/{TOP}_idle"}
        assert group.holds(process.pid), "a worker that starts has left nothing"
        v1.idle.release(group)
        assert {cpu_group(each) for each in pids} == {f"/{TOP}/w1.1"}
        assert group.holds(process.pid)
        wait_until(group.kill, "all are dead")


@needs_v1
@pytest.mark.cgroup1
@pytest.mark.slow
def test_v1_what_a_killed_server_left_in_it_is_ended_by_the_next_one(v1: CgroupBackend) -> None:
    assert v1.idle is not None
    with subprocess.Popen(["sleep", "1000"]) as left:
        Path(v1.idle.procs_file).write_text(str(left.pid))
        set_up(TOP)
        assert left.wait(10) < 0
