"""Compares the model repositories with what was last read, and loads, reloads or unloads the models that differ.

Checked every `poll_s` in `poll` mode, and at SIGHUP in all modes. A model is touched only if its files have changed. If
the changed model cannot be loaded, the old revision keeps serving. A poll loads files only when they are the same as at
the poll before: they may still be being written. A repository that cannot be read takes none of its models along: they
stay, and those that could not be loaded meanwhile are retried when it can be read again.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

from mmsup.ipc.errors import MmsupError
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.restart_policy import NOT_MENDED_BY_TIME, PROBE_AFTER_S
from mmsup.supervisor.models.loader import LoadContext, ModelLoader
from mmsup.supervisor.models.sleep_state import SleepPhase
from mmsup.supervisor.models.startup_policy import is_on_demand, is_wanted, start_asleep
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import ModelEntry, RepositoryScan

_UNKNOWN: Final = ("", "")
UNMOUNTED: Final = "is empty and lies on another file system than before, as if it were unmounted"


class RepositoryRoots:
    """The directories of all repositories, as they were when last read.

    Tells an empty directory from one whose file system is gone. One event when a repository can no longer be read, one
    when it can again.
    """

    def __init__(self, event_log: EventLog) -> None:
        self._event_log = event_log
        self._devices: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        """Directories that cannot be read now, and why."""

    def update(self, found: RepositoryScan) -> set[str]:
        """Take in a scan; the directories that can be read again."""
        lost = {error.place: error.text for error in found.errors}
        for root, seen in found.roots.items():
            if not seen.folder_count and self._devices.get(root, seen.device) != seen.device:
                lost[root] = UNMOUNTED
            else:
                self._devices[root] = seen.device
        back = self.unreadable.keys() - lost.keys()
        for root in sorted(lost.keys() - self.unreadable.keys()):
            self._event_log.record("repository_lost", f"{root}: {lost[root]}; its models stay as they are", root=root)
        for root in sorted(back):
            self._event_log.record("repository_back", f"{root}: can be read again", root=root)
        self.unreadable = lost
        return set(back)


class RepositoryWatcher:
    def __init__(self, context: LoadContext, loader: ModelLoader) -> None:
        self._context = context
        self._settings = context.settings
        self._model_set = context.model_set
        self._loader = loader
        self._roots = RepositoryRoots(context.event_log)
        self._scanning = asyncio.Lock()
        self._seen: dict[str, tuple[str, str]] = {}
        """Of each model what was last applied, or is being applied."""
        self._last_poll: dict[str, tuple[str, str]] = {}
        """Of each model what the last poll found."""
        self._in_progress: set[str] = set()
        """Models that a check is changing now; a later check leaves them alone."""
        self._stale: set[str] = set()
        """Those of them that have changed again meanwhile: the check that changes them scans once more."""

    def scan(self) -> RepositoryScan:
        found = scanner.scan(self._settings)
        self._update_roots(found)
        return found

    async def _scan_stepwise(self) -> RepositoryScan:
        """The same over many turns of the event loop: a model takes milliseconds, and there may be a thousand."""
        for found in scanner.scan_stepwise(self._settings):
            if found is not None:
                self._update_roots(found)
                return found
            await asyncio.sleep(0)
        raise AssertionError("a scan without an end")

    def _update_roots(self, found: RepositoryScan) -> None:
        for root in self._roots.update(found):
            self._retry_models_of(root)

    async def poll(self) -> None:
        """Check every `poll_s`, for ever. A slow load delays no check of other models."""
        async with asyncio.TaskGroup() as checks:
            while True:
                await asyncio.sleep(self._settings.poll_s)
                if not self._scanning.locked():
                    checks.create_task(self.check(is_poll=True))

    async def follow_mismatches(self) -> None:
        """For ever, where nothing polls: look at the files of models that are given up until these change."""
        while True:
            await asyncio.sleep(PROBE_AFTER_S)
            await self.load_mended()

    async def load_mended(self) -> None:
        """Load the models whose configuration contradicted their file if their files have changed since."""
        for name, model in list(self._model_set.models.items()):
            failure = model.active.load_failure() if model.active is not None else None
            if failure is None or failure.code not in NOT_MENDED_BY_TIME or name in self._in_progress:
                continue
            entry = scanner.scan_model(self._settings, name)
            if entry is not None and model.active is not None and entry.file_digest != model.active.stamp:
                self._in_progress.add(name)
                await self._apply(name, entry)

    async def check(self, *, is_poll: bool = False) -> None:
        """Scan once and apply what has changed; returns when all of that has its outcome. `is_poll`: leave what has
        changed since the last poll to the next one."""
        async with self._scanning:
            found = (await self._scan_stepwise()).models
            settling = set[str]()
            if is_poll:
                settling, self._last_poll = _settling(found, self._last_poll), _identities(found)
            changed = self._compare(found, settling)
            self._in_progress |= changed
            for name in settling:
                self._await_files(found[name])
        async with asyncio.TaskGroup() as group:
            for name in changed:
                group.create_task(self._apply(name, found.get(name)))
        if changed & self._stale:
            self._stale -= changed
            await self.check()

    def _compare(self, found: dict[str, ModelEntry], settling: set[str]) -> set[str]:
        """Names of the models that differ from what was last seen, which is what was found from now on. Of `settling`
        those that differ stay there alone, and stay as they were last seen."""
        known = {name: _identity(model.entry) for name, model in self._model_set.models.items()} | self._seen
        seen = _identities(found)
        seen |= {name: identity for name, identity in known.items() if name not in found and self._stays(name)}
        changed = {name for name in known.keys() | seen.keys() if known.get(name) != seen.get(name)}
        changed |= {name for name, model in self._model_set.models.items() if model.is_settling}
        settling &= changed
        busy = (changed - settling) & self._in_progress
        self._stale |= busy
        self._seen = seen | {name: known.get(name, _UNKNOWN) for name in busy | settling}
        return changed - busy - settling

    def _await_files(self, entry: ModelEntry) -> None:
        """The files of a model may still be being written: if it shall serve and has nothing to serve with, it is
        wanted from now on, and says so."""
        model = self._model_set.model(entry.name)
        if (model is None or model.active is None) and is_wanted(self._context, entry.name, model):
            model = self._model_set.register(entry)
            model.wanted, model.is_settling = True, True

    async def _apply(self, name: str, entry: ModelEntry | None) -> None:
        try:
            await (self._update(entry) if entry is not None else self.remove(name))
        finally:
            self._in_progress.discard(name)

    def _stays(self, name: str) -> bool:
        """Whether a model that was not found is to stay: its repository cannot be read, or it was missing before."""
        model = self._model_set.model(name)
        entry = model.entry if model is not None else None
        if entry is not None and entry.directory:
            return os.path.dirname(entry.directory) in self._roots.unreadable
        return bool(self._roots.unreadable) or entry == scanner.missing_model(name)

    def _retry_models_of(self, root: str) -> None:
        for model in self._model_set.models.values():
            if model.entry is None or os.path.dirname(model.entry.directory) != root:
                continue
            for instance in list(model.instances()):
                if instance.state in (InstanceState.BACKOFF, InstanceState.FAILED):
                    instance.apply(lifecycle_events.RetryDue())

    async def _update(self, entry: ModelEntry) -> None:
        model = self._model_set.model(entry.name)
        if model is not None and _identity(model.entry) == _identity(entry) and not model.is_settling:
            return  # it had changed for a while, and is again what it was
        wanted = is_wanted(self._context, entry.name, model)
        if not entry.errors or model is None or model.active is None or not model.active.is_serving():
            model = self._model_set.register(entry)  # otherwise the revision that serves goes on with its own entry
        model.is_settling = False
        if not wanted:
            return
        desired = self._context.desired_state.get(entry.name)
        if model.sleep.is_asleep or (model.active is None and is_on_demand(self._settings, entry)):
            if model.sleep.phase is not SleepPhase.WAKING:
                start_asleep(self._context, entry, model.sleep.config)  # its next load takes the new files
            return
        if entry.errors and model.active is None:
            self._loader.start_wanted(entry)  # the versions without a fault; the others, or all, wait for their files
            return
        try:
            await self._loader.load(entry.name, desired.config if desired else "", by_hand=False)
        except MmsupError as error:
            self._context.event_log.record("load_failed", error.operator_text, model=entry.name, code=error.code)

    async def remove(self, name: str) -> None:
        """The files of a model are gone: unload it, and forget it when its processes have exited."""
        model = self._model_set.model(name)
        if model is None:
            return
        model.entry, model.is_settling = None, False
        if model.wanted:
            await self._loader.unload(name, by_hand=False)
        self._model_set.mark_changed(name)  # its last process may have exited already


def _identity(entry: ModelEntry | None) -> tuple[str, str]:
    """Differs if the files of a model differ, or its errors."""
    return (entry.file_digest, entry.reason) if entry else _UNKNOWN


def _identities(found: dict[str, ModelEntry]) -> dict[str, tuple[str, str]]:
    return {name: _identity(entry) for name, entry in found.items()}


def _settling(found: dict[str, ModelEntry], last: dict[str, tuple[str, str]]) -> set[str]:
    """Models that could be loaded, and differ from what the poll before has found."""
    return {name for name, entry in found.items() if not entry.errors and last.get(name) != _identity(entry)}
