"""The keeper's table of children without a keeper: real processes, and a list in place of the controller."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from keeper_rig import is_alive, spawn_of, wait_readable, wait_until
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, SignalChild, SpawnFailed
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.keeper import dying_cgroups
from mmsup.supervisor.keeper.children import Child, Children, start_child
from mmsup.supervisor.keeper.forking.new_descriptors import LOG_PIPE_BYTES
from mmsup.supervisor.keeper.spawn import exec_error
from mmsup.supervisor.linux import cgroup, process_tree

pytestmark = pytest.mark.slow

TOKEN = "worker.1.1"
SERVER = "mmsup_test"


@dataclass
class ChildrenRig:
    """A table of children, and the messages that it has sent to the controller."""

    lifeline: int
    sent: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)  # messages of FROM_KEEPER
    missing: bool = False
    """The descriptors that a child asks for do not exist."""

    def __post_init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.children = Children(
            self.selector, self.lifeline, self._shared, lambda *sent: self.sent.append(sent), SERVER
        )

    def _shared(self, _: object) -> dict[str, int]:
        if self.missing:
            raise OSError("there is no such listener")
        return {}

    def wait_for_exec(self) -> None:
        (key, _), *_ = self.selector.select(20.0)
        key.data()

    def child(self, *argv: str, token: str = TOKEN, **fields: Any) -> ChildDescriptors:  # fields of Spawn
        """Start one and wait until its program runs."""
        self.children.spawn(spawn_of(token, *argv, **fields))
        self.wait_for_exec()
        message, _ = self.sent[-1]
        assert isinstance(message, ChildDescriptors)
        return message

    def reap(self, pid: int, token: str = TOKEN) -> ChildExited:
        """Wait for an exit and handle it as the keeper does."""
        pidfd = os.pidfd_open(pid)
        wait_readable(pidfd, "death")
        os.close(pidfd)
        ended = ChildExited(token, pid, 0, signal.SIGKILL)
        self.children.record_exit(ended)
        os.waitpid(pid, 0)
        return ended


@pytest.fixture
def rig() -> Iterator[ChildrenRig]:
    lifeline = os.pipe()
    rig = ChildrenRig(lifeline[0])
    yield rig
    rig.children.kill_all()
    for message, descriptors in rig.sent:
        if isinstance(message, ChildDescriptors) and rig.children.token_of(message.pid) is not None:
            rig.reap(message.pid, message.token)
        rig.children.forget(message.token)
        del descriptors
    rig.selector.close()
    close_fds(list(lifeline))


def test_a_child_is_announced_once_its_program_runs_with_its_five_descriptors(rig: ChildrenRig) -> None:
    rig.children.spawn(spawn_of(TOKEN))
    assert rig.sent == []
    rig.wait_for_exec()
    ((message, descriptors),) = rig.sent
    assert (message.token, message.note, len(descriptors)) == (TOKEN, f"note of {TOKEN}", 5)
    assert is_alive(message.pid)
    assert rig.children.token_of(message.pid) == TOKEN
    assert (len(rig.children), rig.children.is_empty) == (1, False)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda rig: rig.child(), "there is a worker.1.1 already"),
        (lambda rig: setattr(rig, "missing", True), "there is no such listener"),
    ],
)
def test_one_that_cannot_be_forked_is_refused_at_once(
    rig: ChildrenRig, spoil: Callable[[ChildrenRig], Any], text: str
) -> None:
    spoil(rig)
    known = len(rig.children)
    rig.children.spawn(spawn_of(TOKEN))
    assert rig.sent[-1] == (SpawnFailed(TOKEN, text), ())
    assert len(rig.children) == known


def test_one_whose_program_cannot_run_is_forgotten_and_its_token_free(rig: ChildrenRig) -> None:
    rig.children.spawn(spawn_of(TOKEN, "/nowhere/program"))
    rig.wait_for_exec()
    ((message, _),) = rig.sent
    assert isinstance(message, SpawnFailed)
    assert "/nowhere/program" in message.text
    assert len(rig.children) == 0
    os.waitpid(-1, 0)
    assert rig.child().token == TOKEN


def test_an_exit_is_reported_ends_the_session_and_is_kept_until_the_controller_forgets_it(rig: ChildrenRig) -> None:
    child = rig.child("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    log = rig.sent[-1][1][4]
    wait_readable(log, "number of the grandchild")
    grandchild = int(os.read(log, 100))
    rig.children.forget(TOKEN)
    assert len(rig.children) == 1  # it lives
    rig.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=False))
    ended = rig.reap(child.pid)
    assert rig.sent[-1] == (ended, ())
    wait_until(lambda: not is_alive(grandchild), "its session is ended")
    assert (rig.children.is_empty, rig.children.token_of(child.pid)) == (True, None)
    rig.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=True))  # it has no effect
    rig.children.forget(TOKEN)
    assert len(rig.children) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log)


def test_the_next_controller_gets_all_that_is_not_forgotten(rig: ChildrenRig) -> None:
    living, dead = rig.child(token="worker.1.1"), rig.child(token="worker.2.1")
    rig.children.signal(SignalChild("worker.2.1", signal.SIGKILL, whole_session=True))
    ended = rig.reap(dead.pid, "worker.2.1")
    rig.sent.clear()
    rig.children.announce_all()
    assert [message for message, _ in rig.sent] == [living, dead, ended]


def test_an_invalid_signal_is_not_sent(rig: ChildrenRig) -> None:
    child = rig.child()
    rig.children.signal(SignalChild(TOKEN, 4000, whole_session=False))
    rig.children.signal(SignalChild("worker.9.9", signal.SIGKILL, whole_session=False))
    assert is_alive(child.pid)


def test_processes_left_in_the_group_of_an_exited_child_are_killed_until_it_is_empty(
    rig: ChildrenRig, tmp_path: Path
) -> None:
    (tmp_path / "cgroup.procs").touch()
    child = rig.child(procs_files=(str(tmp_path / "cgroup.procs"),))
    other = rig.child(token="worker.2.1")  # stands for one that has left the session
    (tmp_path / "cgroup.procs").write_text(f"{other.pid}\n")
    rig.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=False))
    rig.reap(child.pid)
    rig.reap(other.pid, "worker.2.1")  # the group was killed
    assert (len(rig.children.dying_groups.groups), rig.children.is_empty) == (1, False)
    rig.children.dying_groups.kill_again()
    assert rig.children.dying_groups.groups  # the file still names it
    (tmp_path / "cgroup.procs").write_text("")
    rig.children.dying_groups.kill_again()
    assert (len(rig.children.dying_groups.groups), rig.children.is_empty) == (0, True)


def test_the_exit_of_a_child_in_a_control_group_needs_no_scan_of_proc(
    rig: ChildrenRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    procs = tmp_path / "cgroup.procs"
    procs.touch()
    child = rig.child(procs_files=(str(procs),))
    procs.write_text("")
    rig.children.kill_all()
    monkeypatch.setattr(process_tree, "end_session", lambda _: pytest.fail("the session was searched"))
    rig.reap(child.pid)
    assert rig.children.is_empty


def test_a_group_that_does_not_become_empty_is_given_up(
    rig: ChildrenRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dying_cgroups, "CLEANUP_LIMIT_S", 0.0)
    monkeypatch.setattr(cgroup, "kill", lambda _: False)
    child = rig.child(procs_files=(os.devnull,))
    rig.children.kill_all()
    rig.reap(child.pid)
    assert rig.children.dying_groups
    rig.children.dying_groups.kill_again()
    assert rig.children.is_empty


def test_the_next_program_has_the_same_children_and_reads_the_exec_status_of_the_last(rig: ChildrenRig) -> None:
    living = rig.child()
    rig.children.spawn(spawn_of("worker.2.1"))
    records = rig.children.records()
    exec_status = records[1].exec_status
    assert exec_status is not None
    rig.selector.unregister(exec_status)  # the next program has a loop of its own
    rig.children = Children(rig.selector, rig.lifeline, lambda _: {}, lambda *sent: rig.sent.append(sent), SERVER)
    rig.children.restore(records)
    assert rig.children.token_of(living.pid) == TOKEN
    rig.wait_for_exec()
    assert [message.token for message, _ in rig.sent] == [TOKEN, "worker.2.1"]
    assert rig.children.records()[1].exec_status is None


# One child.


def lifeline() -> tuple[int, int]:
    return os.pipe()


def exit_code_of(child: Child) -> int:
    wait_readable(child.pidfd, "death")
    return os.waitstatus_to_exitcode(os.waitpid(child.message.pid, 0)[1])


def test_a_child_has_the_token_and_note_of_its_request() -> None:
    read, write = lifeline()
    child = start_child(spawn_of("worker.1.1", "/bin/true", note="kept"), read, {})
    assert child.message == ChildDescriptors("worker.1.1", child.message.pid, "kept")
    assert exit_code_of(child) == 0
    child.close()
    close_fds([read, write])


def test_a_child_may_print_much_before_anything_is_read() -> None:
    read, write = lifeline()
    size = LOG_PIPE_BYTES - 4096
    child = start_child(spawn_of("worker.1.1", sys.executable, "-c", f"print('x' * {size})"), read, {})
    assert exit_code_of(child) == 0
    log = child.descriptors[4]
    data = b""
    while piece := os.read(log, 1 << 20):
        data += piece
    assert len(data) == size + 1
    child.close()
    close_fds([read, write])


def test_reading_from_a_child_never_blocks() -> None:
    read, write = lifeline()
    child = start_child(spawn_of("worker.1.1"), read, {})
    for fd in (child.descriptors[3], child.descriptors[4]):
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
    os.kill(child.message.pid, 9)
    exit_code_of(child)
    child.close()
    child.close()  # closing twice does no harm
    close_fds([read, write])


def test_a_start_that_runs_out_of_descriptors_leaks_none() -> None:
    read, write = lifeline()
    others = {each.pid for each in psutil.Process().children()}  # of other tests: multiprocessing leaves a process
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = len(os.listdir("/proc/self/fd"))
    taken: list[int] = []
    try:
        while True:
            taken.append(os.dup(read))
    except OSError:
        pass
    outcomes: list[str] = []
    try:
        for free in range(20):
            close_fds([taken.pop() for _ in range(free)])
            outcomes.append(outcome(read))
            taken += [os.dup(read) for _ in range(free)]  # all that were free are free again
    finally:
        close_fds(taken)
    assert "Too many open files" in outcomes[0]
    assert outcomes[-1] == ""
    assert len(os.listdir("/proc/self/fd")) == before
    for each in psutil.Process().children():  # one that got no pidfd was killed and must be reaped
        if each.pid not in others:
            os.waitpid(each.pid, 0)
    close_fds([read, write])


def outcome(read: int) -> str:
    """Why a child was not started, or did not run; empty if it ran."""
    try:
        child = start_child(spawn_of("worker.1.1", "/bin/true"), read, {})
    except OSError as error:
        return str(error)
    exit_code_of(child)
    assert child.exec_status is not None
    text = exec_error(child.exec_status)
    child.close()
    return text or ""
