from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from mmsup.supervisor.linux.cgroup import Cgroup, CgroupUsage
from mmsup.supervisor.processes import usage


def gone() -> int:
    """The number of a process that was."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_a_process_has_pages_and_time() -> None:
    use = usage.process_usage(os.getpid())
    assert use is not None
    assert use.rss_bytes > 1 << 20
    assert use.pss_bytes is not None
    assert 0 < use.pss_bytes <= use.rss_bytes + (1 << 20)
    assert use.cpu_s > 0
    assert usage.resident_bytes(os.getpid()) == pytest.approx(use.rss_bytes, rel=0.1)


def test_a_process_that_is_gone_is_none() -> None:
    pid = gone()
    assert usage.resident_bytes(pid) is None
    assert usage.process_usage(pid) is None
    assert usage.footprint_bytes(Cgroup(()), pid) is None


def test_the_machine_has_more_than_is_available() -> None:
    machine = usage.machine_memory()
    assert 0 < machine.available_bytes < machine.total_bytes


def test_a_group_counts_more_than_one_process_but_not_what_can_be_had_back() -> None:
    group = Cgroup([Path("/nowhere")], "memory.max", lambda folder: CgroupUsage(1000, 300, 1200, 0))
    assert usage.footprint_bytes(group, gone()) == 700
    assert usage.footprint_bytes(Cgroup([Path("/nowhere")], "", lambda folder: CgroupUsage(1, 5, 9, 0)), 1) == 0


def test_without_a_group_the_resident_pages_count() -> None:
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
