from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.server import eventually
from mmsup.supervisor.linux.cgroup import Cgroup, CgroupUsage
from mmsup.supervisor.linux.process_tree import session_members
from mmsup.supervisor.processes import usage


def gone() -> int:
    """The pid of a process that has exited."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_a_process_that_is_gone_is_none() -> None:
    pid = gone()
    assert usage.resident_bytes(pid) is None
    assert usage.footprint_bytes(Cgroup(()), pid) is None


def test_the_machine_has_more_than_is_available() -> None:
    machine = usage.machine_memory()
    assert 0 < machine.available_bytes < machine.total_bytes


def test_a_group_counts_all_processes_but_not_reclaimable_page_cache() -> None:
    group = Cgroup([Path("/nowhere")], "memory.max", lambda folder: CgroupUsage(1000, 300, 1200, 0))
    assert usage.footprint_bytes(group, gone()) == 700
    assert usage.footprint_bytes(Cgroup([Path("/nowhere")], "", lambda folder: CgroupUsage(1, 5, 9, 0)), 1) == 0


def test_without_a_group_the_resident_set_counts() -> None:
    footprint = usage.footprint_bytes(Cgroup(()), os.getpid())
    assert footprint == pytest.approx(usage.resident_bytes(os.getpid()), rel=0.1)


def test_a_process_that_is_stopped_or_gone_cannot_run_and_another_can() -> None:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        assert usage.can_run(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        assert not usage.can_run(process.pid)
        process.kill()
    assert not usage.can_run(process.pid)


FORKED = """
import os, sys
held = bytearray(64 << 20)
held[::4096] = b"x" * len(held[::4096])
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_memory_that_a_child_shares_counts_once_where_it_is_divided() -> None:
    mib, pipe = 1 << 20, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKED], stdin=pipe, stdout=pipe, start_new_session=True) as parent:
        assert parent.stdout is not None
        pids = {parent.pid, int(parent.stdout.readline())}
        assert session_members([parent.pid]) == {parent.pid: pids}
        assert all(64 * mib < each < 90 * mib for each in usage.private_bytes(pids).values())
        assert 64 * mib < sum(usage.proportional_bytes(pids).values()) < 100 * mib
        assert 64 * mib < usage.data_bytes(parent.pid) < 200 * mib
        parent.communicate()
    ended = {parent.pid}
    eventually(lambda: not session_members(ended)[parent.pid], "the child ends too")
    assert usage.private_bytes(ended) == usage.proportional_bytes(ended) == dict.fromkeys(ended, 0)
    assert usage.data_bytes(parent.pid) == 0


def test_a_worker_holds_what_its_group_counts_without_files_else_its_share_of_each_page() -> None:
    group = Cgroup([Path("/nowhere")], "memory.max", lambda folder: CgroupUsage(1000, 300, 1200, 0))
    assert usage.held_bytes(group, gone()) == 700
    assert usage.held_bytes(Cgroup(()), gone()) is None
    assert 1 << 20 < (usage.held_bytes(Cgroup(()), os.getpid()) or 0) <= (usage.resident_bytes(os.getpid()) or 0)


def test_what_was_held_for_a_moment_counts_as_released() -> None:
    before = usage.released_bytes(os.getpid())
    with mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # not of a heap, which may keep it
        held.write(bytes(64 << 20))
    assert usage.released_bytes(os.getpid()) > max(before - (8 << 20), 48 << 20)
    assert usage.released_bytes(gone()) == 0
