"""The repositories after the start: what is new, changed or gone since they were last read.

In `poll` mode looked at every `poll_s`, in all modes at SIGHUP. Only models whose files changed move. A changed model
that cannot be loaded leaves the old one serving. What cannot be read now is not gone: the models of a repository that
is lost stay, and those of them that could not start meanwhile try again when it is back.
"""

from __future__ import annotations

import asyncio
import os

from mmsup.ipc.errors import MmsupError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.repository_watcher_roots import RepositoryRoots
from mmsup.supervisor.models.startup_policy import is_wanted_at_start
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import ModelEntry, RepositoryScan
from mmsup.supervisor.state.desired_state import DesiredState


class RepositoryWatcher:
    """Owns the look at the repositories."""

    def __init__(
        self, settings: Settings, fleet: ModelSet, wanted: DesiredState, loads: ModelLoader, journal: EventLog
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._wanted = wanted
        self._loads = loads
        self._journal = journal
        self._roots = RepositoryRoots(journal)
        self._turn = asyncio.Lock()
        self._seen: dict[str, tuple[str, str]] = {}
        self._moving: set[str] = set()
        """Models that a look moves at this moment; another leaves them alone."""
        self._stale: set[str] = set()
        """Those of them that have changed again meanwhile: whoever moves them looks once more."""

    def scan(self) -> RepositoryScan:
        """All repositories as they lie there now; that one cannot be read is said once, and once that it can again."""
        found = scanner.scan(self._settings)
        self._weigh(found)
        return found

    async def _read_by_the_way(self) -> RepositoryScan:
        """The same, in many turns of the loop: a model takes milliseconds, and there may be a thousand."""
        for found in scanner.scan_stepwise(self._settings):
            if found is not None:
                self._weigh(found)
                return found
            await asyncio.sleep(0)
        raise AssertionError("a scan without an end")

    def _weigh(self, found: RepositoryScan) -> None:
        for root in self._roots.update(found):
            self._try_again(root)

    async def poll(self) -> None:
        """Look for ever. A model whose load takes its time does not keep the others from being looked at."""
        async with asyncio.TaskGroup() as looks:
            while True:
                await asyncio.sleep(self._settings.poll_s)
                if not self._turn.locked():
                    looks.create_task(self.check())

    async def check(self) -> None:
        """Look once, and move what has changed; done when all of that has its outcome."""
        async with self._turn:
            found = (await self._read_by_the_way()).models
            changed = self._compare(found)
            self._moving |= changed
        async with asyncio.TaskGroup() as group:
            for name in changed:
                group.create_task(self._settle(name, found.get(name)))
        if changed & self._stale:
            self._stale -= changed
            await self.check()

    def _compare(self, found: dict[str, ModelEntry]) -> set[str]:
        """Names of the models that are not as they were; from now on they are known as they are."""
        known = {name: _face(model.entry) for name, model in self._fleet.models.items()} | self._seen
        seen = {name: _face(entry) for name, entry in found.items()}
        seen |= {name: face for name, face in known.items() if name not in found and self._stays(name)}
        changed = {name for name in known.keys() | seen.keys() if known.get(name) != seen.get(name)}
        busy = changed & self._moving
        self._stale |= busy
        self._seen = seen | {name: known[name] for name in busy & known.keys()}
        return changed - busy

    async def _settle(self, name: str, entry: ModelEntry | None) -> None:
        try:
            await (self._move(entry) if entry is not None else self._remove(name))
        finally:
            self._moving.discard(name)

    def _stays(self, name: str) -> bool:
        """Whether a model that was not found is no less there than before."""
        model = self._fleet.model(name)
        entry = model.entry if model is not None else None
        if entry is not None and entry.directory:
            return os.path.dirname(entry.directory) in self._roots.unreadable
        return bool(self._roots.unreadable) or entry == scanner.missing_model(name)

    def _try_again(self, root: str) -> None:
        for model in self._fleet.models.values():
            if model.entry is None or os.path.dirname(model.entry.directory) != root:
                continue
            for instance in list(model.instances()):
                if instance.state in (lifecycle_events.InstanceState.BACKOFF, lifecycle_events.InstanceState.FAILED):
                    instance.apply(lifecycle_events.RetryDue())

    async def _move(self, entry: ModelEntry) -> None:
        model = self._fleet.model(entry.name)
        if model is not None and _face(model.entry) == _face(entry):
            return  # it was another for a while, and is what is in force again
        is_new = model is None or (model.entry is None and not model.wanted)
        wish = self._wanted.get(entry.name)
        wanted = (
            wish.up
            if wish
            else model.wanted
            if model and not is_new
            else is_wanted_at_start(self._settings, entry.name)
        )
        if model is None or not model.wanted or not entry.errors:
            self._fleet.register(entry)  # else what serves is still as it was read, and goes on
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
        self._fleet.mark_changed(name)  # its name goes with its last process, which may be gone already


def _face(entry: ModelEntry | None) -> tuple[str, str]:
    """What differs if anything of a model does: its files, or what is wrong with it."""
    return (entry.file_digest, entry.reason) if entry else ("", "")
