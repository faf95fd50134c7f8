"""Descriptors that the keeper holds for several processes: lifeline, listeners, counter tables."""

from __future__ import annotations

import os

from mmsup.ipc.failpoints import inherited_descriptors
from mmsup.ipc.memory.counters import make_counter_table
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.supervisor.keeper.listeners import CONTROL, Listeners
from mmsup.supervisor.keeper.reexec import KeeperState


class SharedDescriptors:
    """Created with the keeper, or taken over from the previous program of its process."""

    def __init__(self, listeners: Listeners, gateway_seats: int, state: KeeperState | None) -> None:
        self._listeners = listeners
        # Invariant: only this process holds `lifeline_writer`, so its death gives every reader of `lifeline` EOF.
        self.lifeline, self.lifeline_writer = (
            (state.lifeline, state.lifeline_writer) if state else os.pipe2(os.O_CLOEXEC)
        )
        tables = state.counter_tables if state else ()
        self.counter_tables = (*tables, *(make_counter_table() for _ in range(gateway_seats - len(tables))))

    def for_controller(self) -> dict[str, int]:
        return {"lifeline": self.lifeline, "listen:control": self._listeners.fileno(CONTROL), **inherited_descriptors()}

    def for_child(self, spawn: Spawn) -> dict[str, int]:
        """OSError if a listener is requested that does not exist."""
        unknown = [name for name in spawn.listeners if name not in self._listeners.addresses]
        if unknown:
            raise OSError(f"there is no listener {unknown[0]!r}")
        shared = {f"listen:{name}": self._listeners.fileno(name) for name in spawn.listeners}
        if spawn.counter_tables:
            shared |= {f"tally:{seat}": fd for seat, fd in enumerate(self.counter_tables)} | inherited_descriptors()
        return shared
