"""The keeper's children without a keeper: real processes, and a brain that is a list."""

from __future__ import annotations

import os
import selectors
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keeper_rig import is_alive, spawn_of, wait_readable, wait_until
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, SignalChild, SpawnFailed
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.keeper import children
from mmsup.supervisor.keeper.children import Children
from mmsup.supervisor.linux import cgroup

pytestmark = pytest.mark.slow

TOKEN = "worker.1.1"


@dataclass
class Room:
    """One nursery, and what its brain was told."""

    lifeline: int
    told: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)  # messages of FROM_KEEPER
    missing: bool = False
    """What a child should inherit is not there."""

    def __post_init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.children = Children(self.selector, self.lifeline, self._shared, lambda *told: self.told.append(told))

    def _shared(self, _: object) -> dict[str, int]:
        if self.missing:
            raise OSError("there is no such listener")
        return {}

    def settle(self) -> None:
        """Hear what the next exec came to."""
        (key, _), *_ = self.selector.select(20.0)
        key.data()

    def child(self, *argv: str, token: str = TOKEN, **fields: Any) -> ChildDescriptors:  # fields of Spawn
        """One whose program runs."""
        self.children.spawn(spawn_of(token, *argv, **fields))
        self.settle()
        message, _ = self.told[-1]
        assert isinstance(message, ChildDescriptors)
        return message

    def bury(self, pid: int, token: str = TOKEN) -> ChildExited:
        """As the keeper does with one that is dead."""
        pidfd = os.pidfd_open(pid)
        wait_readable(pidfd, "death")
        os.close(pidfd)
        ended = ChildExited(token, pid, 0, signal.SIGKILL)
        self.children.record_exit(ended)
        os.waitpid(pid, 0)
        return ended


@pytest.fixture
def room() -> Iterator[Room]:
    lifeline = os.pipe()
    made = Room(lifeline[0])
    yield made
    made.children.kill_all()
    for message, descriptors in made.told:
        if isinstance(message, ChildDescriptors) and made.children.token_of(message.pid) is not None:
            made.bury(message.pid, message.token)
        made.children.forget(message.token)
        del descriptors
    made.selector.close()
    close_fds(list(lifeline))


def test_a_child_is_told_of_once_its_program_runs_with_its_five_descriptors(room: Room) -> None:
    room.children.spawn(spawn_of(TOKEN))
    assert room.told == []
    room.settle()
    ((message, descriptors),) = room.told
    assert (message.token, message.note, len(descriptors)) == (TOKEN, f"note of {TOKEN}", 5)
    assert is_alive(message.pid)
    assert room.children.token_of(message.pid) == TOKEN
    assert (len(room.children), room.children.is_empty) == (1, False)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda room: room.child(), "there is a worker.1.1 already"),
        (lambda room: setattr(room, "missing", True), "there is no such listener"),
    ],
)
def test_one_that_cannot_be_forked_is_refused_at_once(room: Room, spoil: Callable[[Room], Any], text: str) -> None:
    spoil(room)
    known = len(room.children)
    room.children.spawn(spawn_of(TOKEN))
    assert room.told[-1] == (SpawnFailed(TOKEN, text), ())
    assert len(room.children) == known


def test_one_whose_program_cannot_run_is_forgotten_and_its_token_free(room: Room) -> None:
    room.children.spawn(spawn_of(TOKEN, "/nowhere/program"))
    room.settle()
    ((message, _),) = room.told
    assert isinstance(message, SpawnFailed)
    assert "/nowhere/program" in message.text
    assert len(room.children) == 0
    os.waitpid(-1, 0)
    assert room.child().token == TOKEN


def test_a_death_is_told_ends_its_session_and_is_known_until_the_brain_has_it_written_down(room: Room) -> None:
    child = room.child("/bin/sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    log = room.told[-1][1][4]
    wait_readable(log, "number of the grandchild")
    grandchild = int(os.read(log, 100))
    room.children.forget(TOKEN)
    assert len(room.children) == 1  # it lives
    room.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=False))
    ended = room.bury(child.pid)
    assert room.told[-1] == (ended, ())
    wait_until(lambda: not is_alive(grandchild), "its session is ended")
    assert (room.children.is_empty, room.children.token_of(child.pid)) == (True, None)
    room.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=True))  # nobody is met
    room.children.forget(TOKEN)
    assert len(room.children) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log)


def test_the_next_brain_is_told_of_all_that_is_not_forgotten(room: Room) -> None:
    living, dead = room.child(token="worker.1.1"), room.child(token="worker.2.1")
    room.children.signal(SignalChild("worker.2.1", signal.SIGKILL, whole_session=True))
    ended = room.bury(dead.pid, "worker.2.1")
    room.told.clear()
    room.children.announce_all()
    assert [message for message, _ in room.told] == [living, dead, ended]


def test_a_signal_that_is_none_is_not_sent(room: Room) -> None:
    child = room.child()
    room.children.signal(SignalChild(TOKEN, 4000, whole_session=False))
    room.children.signal(SignalChild("worker.9.9", signal.SIGKILL, whole_session=False))
    assert is_alive(child.pid)


def test_what_is_left_in_the_group_of_the_dead_is_killed_and_looked_at_for_a_while_only(
    room: Room, tmp_path: Path
) -> None:
    (tmp_path / "cgroup.procs").touch()
    child = room.child(procs_files=(str(tmp_path / "cgroup.procs"),))
    other = room.child(token="worker.2.1")  # plays one that has left the session
    (tmp_path / "cgroup.procs").write_text(f"{other.pid}\n")
    room.children.signal(SignalChild(TOKEN, signal.SIGKILL, whole_session=False))
    room.bury(child.pid)
    room.bury(other.pid, "worker.2.1")  # the group was killed
    assert (room.children.has_dying_groups, room.children.is_empty) == (True, False)
    room.children.kill_dying_groups()
    assert room.children.has_dying_groups  # the file still names it
    (tmp_path / "cgroup.procs").write_text("")
    room.children.kill_dying_groups()
    assert (room.children.has_dying_groups, room.children.is_empty) == (False, True)


def test_a_grave_that_does_not_empty_is_given_up(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "CLEANUP_LIMIT_S", 0.0)
    monkeypatch.setattr(cgroup, "kill", lambda _: False)
    child = room.child(procs_files=(os.devnull,))
    room.children.kill_all()
    room.bury(child.pid)
    assert room.children.has_dying_groups
    room.children.kill_dying_groups()
    assert room.children.is_empty


def test_the_next_program_keeps_the_same_children_and_hears_the_doubt_of_the_last(room: Room) -> None:
    living = room.child()
    room.children.spawn(spawn_of("worker.2.1"))
    charges, graves = room.children.records()
    doubt = charges[1].exec_status
    assert doubt is not None
    room.selector.unregister(doubt)  # the loop is another
    room.children = Children(room.selector, room.lifeline, lambda _: {}, lambda *told: room.told.append(told))
    room.children.restore(charges, graves)
    assert room.children.token_of(living.pid) == TOKEN
    room.settle()
    assert [message.token for message, _ in room.told] == [TOKEN, "worker.2.1"]
    assert room.children.records()[0][1].exec_status is None
