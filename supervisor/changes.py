"""The repositories after the start: what is new, changed or gone since they were last read.

In `poll` mode looked at every `poll_s`, in all modes at SIGHUP. Only models whose files changed move. A changed model
that cannot be loaded leaves the old one serving.
"""

from __future__ import annotations

import asyncio

from mmsup.ipc.errors import MmsupError
from mmsup.supervisor import repository
from mmsup.supervisor.events import Journal
from mmsup.supervisor.fleet import Fleet
from mmsup.supervisor.loads import Loads
from mmsup.supervisor.repository import ModelEntry
from mmsup.supervisor.settings import Settings
from mmsup.supervisor.startup import by_rule
from mmsup.supervisor.wanted import Wanted


class Changes:
    """Owns the look at the repositories."""

    def __init__(self, settings: Settings, fleet: Fleet, wanted: Wanted, loads: Loads, journal: Journal) -> None:
        self._settings = settings
        self._fleet = fleet
        self._wanted = wanted
        self._loads = loads
        self._journal = journal
        self._turn = asyncio.Lock()
        self._seen: dict[str, tuple[str, str]] = {}

    async def poll(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._settings.poll_s)
            await self.look()

    async def look(self) -> None:
        """Look once, and move what has changed."""
        async with self._turn:
            known = {name: _face(model.entry) for name, model in self._fleet.models.items()} | self._seen
            found = repository.scan(self._settings).models
            self._seen = {name: _face(entry) for name, entry in found.items()}
            async with asyncio.TaskGroup() as group:
                for name, entry in found.items():
                    if known.get(name) != self._seen[name]:
                        group.create_task(self._move(entry, is_new=name not in known))
                for name in known.keys() - found.keys():
                    group.create_task(self._remove(name))

    async def _move(self, entry: ModelEntry, *, is_new: bool) -> None:
        model = self._fleet.model(entry.name)
        wish = self._wanted.get(entry.name)
        wanted = wish.up if wish else model.wanted if model and not is_new else by_rule(self._settings, entry.name)
        if model is None or not model.wanted or not entry.faults:
            self._fleet.know(entry)  # else what serves is still as it was read, and goes on
        if not wanted:
            return
        try:
            await self._loads.load(entry.name, wish.config if wish else "", by_hand=False)
        except MmsupError as error:
            self._journal.record("load_failed", error.text, model=entry.name, code=error.code)

    async def _remove(self, name: str) -> None:
        model = self._fleet.model(name)
        if model is None:
            return
        model.entry = None
        if model.wanted:
            await self._loads.unload(name, by_hand=False)
        self._fleet.forget_when_gone(name)


def _face(entry: ModelEntry | None) -> tuple[str, str]:
    """What differs if anything of a model does: its files, or what is wrong with it."""
    return (entry.stamp, entry.reason) if entry else ("", "")
