from __future__ import annotations

import os
import sys

import pytest

from keeper_rig import spawn_of, wait_readable
from mmsup.ipc.messages.keeper_control import ChildDescriptors
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.keeper.children_charge import LOG_PIPE_BYTES, ManagedChild, start_child
from mmsup.supervisor.keeper.spawn import exec_error

pytestmark = pytest.mark.slow


def lifeline() -> tuple[int, int]:
    return os.pipe()


def over(charge: ManagedChild) -> int:
    wait_readable(charge.pidfd, "death")
    return os.waitstatus_to_exitcode(os.waitpid(charge.message.pid, 0)[1])


def test_a_charge_is_told_with_its_token_pid_and_note() -> None:
    read, write = lifeline()
    charge = start_child(spawn_of("worker.1.1", "/bin/true", note="kept"), read, {})
    assert charge.message == ChildDescriptors("worker.1.1", charge.message.pid, "kept")
    assert over(charge) == 0
    charge.close()
    close_fds([read, write])


def test_a_child_may_print_much_before_anybody_reads() -> None:
    read, write = lifeline()
    size = LOG_PIPE_BYTES - 4096
    charge = start_child(spawn_of("worker.1.1", sys.executable, "-c", f"print('x' * {size})"), read, {})
    assert over(charge) == 0
    log = charge.descriptors[4]
    data = b""
    while piece := os.read(log, 1 << 20):
        data += piece
    assert len(data) == size + 1
    charge.close()
    close_fds([read, write])


def test_nothing_of_a_charge_waits_for_its_reader() -> None:
    read, write = lifeline()
    charge = start_child(spawn_of("worker.1.1"), read, {})
    for fd in (charge.descriptors[3], charge.descriptors[4]):
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
    os.kill(charge.message.pid, 9)
    over(charge)
    charge.close()
    charge.close()  # twice is once
    close_fds([read, write])


def test_whichever_descriptor_is_missing_nothing_is_started_and_none_is_lost() -> None:
    read, write = lifeline()
    before = len(os.listdir("/proc/self/fd"))
    hoard: list[int] = []
    try:
        while True:
            hoard.append(os.dup(read))
    except OSError:
        pass
    outcomes: list[str] = []
    try:
        for free in range(20):
            close_fds([hoard.pop() for _ in range(free)])
            outcomes.append(outcome(read))
            hoard += [os.dup(read) for _ in range(free)]  # all that were free are free again
    finally:
        close_fds(hoard)
    assert "Too many open files" in outcomes[0]
    assert outcomes[-1] == ""
    assert len(os.listdir("/proc/self/fd")) == before
    while True:  # one that got no pidfd was killed, and is ours to reap
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    close_fds([read, write])


def outcome(read: int) -> str:
    """Why a child was not started, or did not run; empty if it ran."""
    try:
        charge = start_child(spawn_of("worker.1.1", "/bin/true"), read, {})
    except OSError as error:
        return str(error)
    over(charge)
    assert charge.exec_status is not None
    text = exec_error(charge.exec_status)
    charge.close()
    return text or ""
