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

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.keeper_control import Exited, Signal, Spawn, SpawnFailed
from mmsup.supervisor.keeper.children_charge import Charge, take
from mmsup.supervisor.keeper.reexec import ChargeNote, GraveNote
from mmsup.supervisor.keeper.spawn import verdict
from mmsup.supervisor.linux import cgroup, process_tree

GRAVE_S: Final = 5.0
"""How long a dead child's group is looked at; a process in an unkillable state is not waited for longer."""
Tell = Callable[[object, Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class _Grave:
    """The control group of a dead child, while something may still live in it."""

    folders: list[Path]
    until_s: float


class Nursery:
    """All of them."""

    def __init__(
        self, selector: selectors.BaseSelector, lifeline: int, shared: Callable[[Spawn], Mapping[str, int]], tell: Tell
    ) -> None:
        """`shared`: what a child inherits beside its own; OSError if it names what is not there. `tell`: the brain."""
        self._selector = selector
        self._lifeline = lifeline
        self._shared = shared
        self._tell = tell
        self._charges: dict[str, Charge] = {}
        self._graves: list[_Grave] = []

    def __len__(self) -> int:
        """How many there are, and have been and are not forgotten."""
        return len(self._charges)

    @property
    def has_graves(self) -> bool:
        """Whether there are groups to be looked at."""
        return bool(self._graves)

    @property
    def is_empty(self) -> bool:
        """Whether nobody lives."""
        return not self._graves and all(each.ended for each in self._charges.values())

    def introduce(self) -> None:
        """Tell a new brain of everybody."""
        for charge in self._charges.values():
            self._introduce(charge)
            if charge.ended is not None:
                self._tell(charge.ended, ())

    def spawn(self, spawn: Spawn) -> None:
        """Start one."""
        try:
            if spawn.token in self._charges:
                raise OSError(f"there is a {spawn.token} already")
            charge = take(spawn, self._lifeline, self._shared(spawn))
        except OSError as error:
            self._tell(SpawnFailed(spawn.token, error.strerror or str(error)), ())
            return
        self._keep(charge)
        faultpoint("keeper.spawned")

    def signal(self, asked: Signal) -> None:
        """Signal one, or its whole session."""
        charge = self._charges.get(asked.token)
        if charge is None or charge.ended is not None or asked.signal not in signal.valid_signals():
            return  # it died meanwhile, and its brain will know
        if asked.group:
            process_tree.signal_session(charge.message.pid, asked.signal)
        else:
            signal.pidfd_send_signal(charge.pidfd, asked.signal)
        faultpoint("keeper.signalled")

    def forget(self, token: str) -> None:
        """Its death is written down."""
        charge = self._charges.get(token)
        if charge is not None and charge.ended is not None:
            del self._charges[token]
            charge.release()
            faultpoint("keeper.forgotten")

    def token_of(self, pid: int) -> str | None:
        """The living child of this number."""
        for token, charge in self._charges.items():
            if charge.message.pid == pid and charge.ended is None:
                return token
        return None

    def bury(self, ended: Exited) -> None:
        """One is dead and about to be reaped."""
        charge = self._charges[ended.token]
        self._settle(charge)
        charge.ended = ended
        if ended.token in self._charges:
            self._tell(ended, ())
        faultpoint("keeper.exit_told")
        process_tree.end_session(ended.pid)
        if charge.procs_files:
            folders = [Path(each).parent for each in charge.procs_files]
            if not cgroup.kill(folders):
                self._graves.append(_Grave(folders, time.monotonic() + GRAVE_S))

    def tend_graves(self) -> None:
        """Look at the groups of the dead; kill what is left in them."""
        now_s = time.monotonic()
        self._graves = [grave for grave in self._graves if now_s < grave.until_s and not cgroup.kill(grave.folders)]

    def kill(self) -> None:
        """End everybody."""
        for charge in self._charges.values():
            if charge.ended is None:
                signal.pidfd_send_signal(charge.pidfd, signal.SIGKILL)

    # From one program of the keeper to the next.

    def notes(self) -> tuple[tuple[ChargeNote, ...], tuple[GraveNote, ...]]:
        """All that is here."""
        charges = [
            ChargeNote(each.message, each.descriptors, each.procs_files, each.doubt, each.told, each.ended)
            for each in self._charges.values()
        ]
        return tuple(charges), tuple(GraveNote(tuple(map(str, each.folders)), each.until_s) for each in self._graves)

    def take_over(self, charges: Iterable[ChargeNote], graves: Iterable[GraveNote]) -> None:
        """All that was there."""
        for note in charges:
            self._keep(Charge(note.message, note.descriptors, note.procs_files, note.doubt, note.told, note.ended))
        self._graves = [_Grave([Path(each) for each in note.folders], note.until_s) for note in graves]

    def _keep(self, charge: Charge) -> None:
        self._charges[charge.message.token] = charge
        if charge.doubt is not None:
            self._selector.register(charge.doubt, selectors.EVENT_READ, lambda: self._settle(charge))

    def _introduce(self, charge: Charge) -> None:
        charge.told = True
        self._tell(charge.message, charge.descriptors)
        faultpoint("keeper.introduced")

    def _settle(self, charge: Charge) -> None:
        """A child's program runs, or it never will."""
        if charge.doubt is None:
            return  # its death was heard in the same turn
        text = verdict(charge.doubt)
        if text is None:
            return
        self._selector.unregister(charge.doubt)
        charge.settle()
        if not text:
            if not charge.told:
                self._introduce(charge)
        elif not charge.told:  # else a new brain knows it as a child, and will know its end
            del self._charges[charge.message.token]
            charge.release()
            self._tell(SpawnFailed(charge.message.token, text), ())
