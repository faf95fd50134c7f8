"""The keeper's children but for the brain: started, told of, signalled, buried; forgotten when the brain says so.

Also the control groups of the dead, until nobody lives in them. Only the keeper uses this; nothing here waits.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildExited, SignalChild, Spawn, SpawnFailed
from mmsup.supervisor.keeper.children_charge import ManagedChild, start_child
from mmsup.supervisor.keeper.reexec import KeptChild, KeptGroup
from mmsup.supervisor.keeper.spawn import exec_error
from mmsup.supervisor.linux import cgroup, process_tree

CLEANUP_LIMIT_S: Final = 5.0
"""How long a dead child's group is looked at; a process in an unkillable state is not waited for longer."""
Send = Callable[[object, Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class _DyingGroup:
    """The control group of a dead child, while something may still live in it."""

    folders: list[Path]
    until_s: float


class Children:
    """All of them."""

    def __init__(
        self, selector: selectors.BaseSelector, lifeline: int, shared: Callable[[Spawn], Mapping[str, int]], tell: Send
    ) -> None:
        """`shared`: what a child inherits beside its own; OSError if it names what is not there. `tell`: the brain."""
        self._selector = selector
        self._lifeline = lifeline
        self._shared_descriptors = shared
        self._send = tell
        self._children: dict[str, ManagedChild] = {}
        self._dying_groups: list[_DyingGroup] = []

    def __len__(self) -> int:
        """How many there are, and have been and are not forgotten."""
        return len(self._children)

    @property
    def has_dying_groups(self) -> bool:
        """Whether there are groups to be looked at."""
        return bool(self._dying_groups)

    @property
    def is_empty(self) -> bool:
        """Whether nobody lives."""
        return not self._dying_groups and all(each.exited for each in self._children.values())

    def announce_all(self) -> None:
        """Tell a new brain of everybody."""
        for charge in self._children.values():
            self._announce(charge)
            if charge.exited is not None:
                self._send(charge.exited, ())

    def spawn(self, spawn: Spawn) -> None:
        """Start one."""
        try:
            if spawn.token in self._children:
                raise OSError(f"there is a {spawn.token} already")
            charge = start_child(spawn, self._lifeline, self._shared_descriptors(spawn))
        except OSError as error:
            self._send(SpawnFailed(spawn.token, error.strerror or str(error)), ())
            return
        self._add(charge)
        failpoint("keeper.spawned")

    def signal(self, asked: SignalChild) -> None:
        """Signal one, or its whole session."""
        charge = self._children.get(asked.token)
        if charge is None or charge.exited is not None or asked.signal not in signal.valid_signals():
            return  # it died meanwhile, and its brain will know
        if asked.whole_session:
            process_tree.signal_session(charge.message.pid, asked.signal)
        else:
            signal.pidfd_send_signal(charge.pidfd, asked.signal)
        failpoint("keeper.signalled")

    def forget(self, token: str) -> None:
        """Its death is written down."""
        charge = self._children.get(token)
        if charge is not None and charge.exited is not None:
            del self._children[token]
            charge.close()
            failpoint("keeper.forgotten")

    def token_of(self, pid: int) -> str | None:
        """The living child of this number."""
        for token, charge in self._children.items():
            if charge.message.pid == pid and charge.exited is None:
                return token
        return None

    def record_exit(self, ended: ChildExited) -> None:
        """One is dead and about to be reaped."""
        charge = self._children[ended.token]
        self._check_exec(charge)
        charge.exited = ended
        if ended.token in self._children:
            self._send(ended, ())
        failpoint("keeper.exit_told")
        process_tree.end_session(ended.pid)
        if charge.procs_files:
            folders = [Path(each).parent for each in charge.procs_files]
            if not cgroup.kill(folders):
                self._dying_groups.append(_DyingGroup(folders, time.monotonic() + CLEANUP_LIMIT_S))

    def kill_dying_groups(self) -> None:
        """Look at the groups of the dead; kill what is left in them."""
        now_s = time.monotonic()
        self._dying_groups = [
            grave for grave in self._dying_groups if now_s < grave.until_s and not cgroup.kill(grave.folders)
        ]

    def kill_all(self) -> None:
        """End everybody."""
        for charge in self._children.values():
            if charge.exited is None:
                signal.pidfd_send_signal(charge.pidfd, signal.SIGKILL)

    # From one program of the keeper to the next.

    def records(self) -> tuple[tuple[KeptChild, ...], tuple[KeptGroup, ...]]:
        """All that is here."""
        charges = [
            KeptChild(
                each.message, each.descriptors, each.procs_files, each.exec_status, each.is_announced, each.exited
            )
            for each in self._children.values()
        ]
        return tuple(charges), tuple(
            KeptGroup(tuple(map(str, each.folders)), each.until_s) for each in self._dying_groups
        )

    def restore(self, charges: Iterable[KeptChild], graves: Iterable[KeptGroup]) -> None:
        """All that was there."""
        for note in charges:
            self._add(
                ManagedChild(
                    note.message, note.descriptors, note.procs_files, note.exec_status, note.is_announced, note.exited
                )
            )
        self._dying_groups = [_DyingGroup([Path(each) for each in note.folders], note.until_s) for note in graves]

    def _add(self, charge: ManagedChild) -> None:
        self._children[charge.message.token] = charge
        if charge.exec_status is not None:
            self._selector.register(charge.exec_status, selectors.EVENT_READ, lambda: self._check_exec(charge))

    def _announce(self, charge: ManagedChild) -> None:
        charge.is_announced = True
        self._send(charge.message, charge.descriptors)
        failpoint("keeper.introduced")

    def _check_exec(self, charge: ManagedChild) -> None:
        """A child's program runs, or it never will."""
        if charge.exec_status is None:
            return  # its death was heard in the same turn
        text = exec_error(charge.exec_status)
        if text is None:
            return
        self._selector.unregister(charge.exec_status)
        charge.close_exec_status()
        if not text:
            if not charge.is_announced:
                self._announce(charge)
        elif not charge.is_announced:  # else a new brain knows it as a child, and will know its end
            del self._children[charge.message.token]
            charge.close()
            self._send(SpawnFailed(charge.message.token, text), ())
