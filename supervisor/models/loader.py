"""Load, reload, unload: one at a time for each model, whoever asks.

A load of a loaded model is make-before-break: the new content is ready before the old is let go, and if any of it fails
the old stays and the caller is told. Concurrent loads of one content are one load. An unload answers when nothing is
routed to the model any more; a load that runs meanwhile ends with `conflict`. A load after an unload waits until the
old processes, and with them their memory, are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from mmsup.ipc.errors import CallerError, MmsupError, ServerError, make_error
from mmsup.ipc.failpoints import failpoint
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.revision import Revision, RevisionRole
from mmsup.supervisor.models.model import Model, state_of
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import ModelEntry
from mmsup.supervisor.state.desired_state import DesiredModel, DesiredState

GATEWAY_BARRIER_S: Final = 1.0
"""How long an answer waits for the gateways to have heard; one that takes longer is about to be killed."""
_LOAD_ERROR_CODES: Final = frozenset(
    {"load_failed", "load_timeout", "does_not_fit", "not_implemented", "gpu_fault", "insufficient_gpu_memory"}
)
"""What may be said of one, the last two of its device; anything else is `load_failed`."""

ProgressListener = Callable[[str], None]


class GatewayBarrier(Protocol):
    """The gateways, as a load sees them."""

    async def wait_until_applied(self, limit_s: float) -> None:
        """Until all have done what was said so far, or the limit."""
        ...


@dataclass(slots=True, eq=False)
class _PendingLoad:
    """A load under way, with everybody who waits for it."""

    name: str
    config: str
    started_s: float
    outcome: asyncio.Future[None]
    revision: Revision | None = None
    listeners: list[ProgressListener] = field(default_factory=list["ProgressListener"])
    task: asyncio.Task[dict[str, Any]] | None = None  # the verb's result, as JSON


class ModelLoader:
    """The loads under way."""

    def __init__(
        self, settings: Settings, fleet: ModelSet, wanted: DesiredState, gateways: GatewayBarrier, journal: EventLog
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._wanted = wanted
        self._gateways = gateways
        self._journal = journal
        self._active: dict[str, _PendingLoad] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self._is_over = False

    async def load(
        self, name: str, config: str = "", say: ProgressListener = lambda _: None, *, by_hand: bool = True
    ) -> Any:
        """Load or reload; the verb's result as JSON when the model serves, MmsupError with the reason if it cannot."""
        if self._is_over:
            raise ServerError("draining", "the server is draining and loads nothing any more", model=name)
        loading = self._active.get(name)
        if loading is None:
            loading = self._begin(name, config, by_hand=by_hand)
        elif loading.config != config:
            raise CallerError("conflict", f"failed to load '{name}': it is being loaded from another content")
        loading.listeners.append(say)
        assert loading.task is not None, "a load without a task"
        try:
            # Shielded: the load goes on if this caller leaves.
            return await asyncio.shield(loading.task)
        finally:
            loading.listeners.remove(say)

    async def unload(self, name: str, *, by_hand: bool = True) -> Any:
        """Unload; the verb's result as JSON when nothing is routed to the model any more."""
        began_s = time.monotonic()
        model = self._fleet.model(name)
        if model is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        if by_hand:
            self._wish(name, DesiredModel(up=False))
        loading = self._active.get(name)
        if loading is not None and not loading.outcome.done():
            text = f"failed to load '{name}': it was unloaded meanwhile"
            loading.outcome.set_exception(CallerError("conflict", text, model=name))
        was_wanted = model.wanted
        self.stop_wanted(model)
        self._fleet.send_route(name)
        await self._gateways.wait_until_applied(GATEWAY_BARRIER_S)
        if was_wanted:
            self._journal.record("model_unloaded", "unloaded; nothing is routed to it any more", model=name)
        return load_result(model, time.monotonic() - began_s)

    def start_wanted(self, entry: ModelEntry, config: str = "") -> None:
        """Want a model without anybody waiting: at the start, or because the repository brought it."""
        model = self._fleet.register(entry)
        model.wanted = True
        if entry.errors:
            self._journal.record("load_failed", entry.reason, model=entry.name, code="load_failed")
        if entry.specs:
            self._fleet.add_revision(model, entry, RevisionRole.ACTIVE, config)

    def stop_wanted(self, model: Model) -> None:
        """Want a model no more: all of it is withdrawn, drained, gone."""
        model.wanted, model.unloaded = False, True
        for edition in list(model.revisions):
            if edition.role is not RevisionRole.RETIRING:
                self._fleet.retire(edition)

    @property
    def is_idle(self) -> bool:
        """Whether no load is under way."""
        return not self._active

    def decide_loads(self) -> None:
        """Something has changed: decide the loads that can be decided."""
        for loading in list(self._active.values()):
            if loading.revision is not None and not loading.outcome.done():
                self._decide(loading, loading.revision)
        for name, gone in self._gone.items():
            if not self._is_leaving(name):
                gone.set()

    def on_progress(self, instance: Instance, text: str) -> None:
        """How far a load is, for those who wait for it."""
        loading = self._active.get(instance.revision.spec.name)
        if loading is not None:
            for say in list(loading.listeners):
                say(f"version {instance.revision.spec.version}: {text}")

    def stop_accepting(self) -> None:
        """The server is draining: loads under way end, and no other begins."""
        self._is_over = True
        for loading in self._active.values():
            if not loading.outcome.done():
                text = f"failed to load '{loading.name}': the server is draining"
                loading.outcome.set_exception(ServerError("draining", text, model=loading.name))

    async def close(self) -> None:
        """Nobody is waited for any more."""
        tasks = [each.task for each in self._active.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # One load.

    def _begin(self, name: str, config: str, *, by_hand: bool) -> _PendingLoad:
        entry = self._read(name, config)
        if by_hand:
            self._wish(name, DesiredModel(up=True, config=config))
        loop = asyncio.get_running_loop()
        loading = _PendingLoad(name, config, time.monotonic(), loop.create_future())
        self._active[name] = loading
        loading.task = loop.create_task(self._run(loading, entry), name=f"load {name}")
        loading.task.add_done_callback(_heard)
        return loading

    async def _run(self, loading: _PendingLoad, entry: ModelEntry) -> dict[str, Any]:  # the verb's result, as JSON
        model = self._fleet.register(entry)
        model.wanted = True
        current = model.active
        again = current is not None and any(release.is_serving() for release in current.versions)
        try:
            if not again:
                model.is_waiting_for_exit = True
                if current is not None:
                    self._fleet.retire(current)
                await self._wait_until_gone(loading, entry)
            loading.revision = self._fleet.add_revision(
                model, entry, RevisionRole.STAGED if again else RevisionRole.ACTIVE, loading.config
            )
            await loading.outcome
        finally:
            model.is_waiting_for_exit = False
            self._fleet.mark_changed(model.name)
            del self._active[loading.name]
            if loading.outcome.done() and not loading.outcome.cancelled():
                loading.outcome.exception()  # it was raised above, or nobody was there to hear it
        self._fleet.send_route(model.name)
        await self._gateways.wait_until_applied(GATEWAY_BARRIER_S)
        seconds = time.monotonic() - loading.started_s
        name = "model_reloaded" if again else "model_loaded"
        self._journal.record(name, f"serves after {seconds:.2f} s", model=model.name)
        return load_result(model, seconds)

    async def _wait_until_gone(self, loading: _PendingLoad, entry: ModelEntry) -> None:
        if not self._is_leaving(loading.name):
            return
        gone = self._gone.setdefault(loading.name, asyncio.Event())
        limit_s = max((spec.deadline_s + spec.load_timeout_s for spec in entry.specs), default=0.0)
        try:
            async with asyncio.timeout(limit_s):
                await gone.wait()
        except TimeoutError:
            text = f"failed to load '{loading.name}': its former processes are not gone yet"
            raise CallerError("conflict", text, model=loading.name) from None
        finally:
            self._gone.pop(loading.name, None)
        if loading.outcome.done():
            await loading.outcome  # unloaded while it waited

    def _decide(self, loading: _PendingLoad, edition: Revision) -> None:
        model = self._fleet.model(loading.name)
        assert model is not None, f"{loading.name} is being loaded and not known"
        failure = edition.load_failure()
        if failure is not None:
            if edition.role is RevisionRole.STAGED:
                self._fleet.retire(edition)
            loading.outcome.set_exception(_refusal(loading.name, failure))
        elif edition.is_fully_ready():
            if edition.role is RevisionRole.STAGED:
                self._fleet.activate(model, edition)
            loading.outcome.set_result(None)

    def _read(self, name: str, config: str) -> ModelEntry:
        """The model as the repository holds it now; MmsupError if it cannot be loaded."""
        entry = scanner.scan_model(self._settings, name)
        if entry is None:
            text = f"failed to load '{name}', failed to poll from model repository"
            raise CallerError("unknown_model", text, model=name)
        if config:
            entry = scanner.with_config(entry, config)
        if entry.errors:
            code = "bad_request" if config else "load_failed"
            raise make_error(code, f"failed to load '{name}': {entry.reason}", model=name)
        return entry

    def _wish(self, name: str, wish: DesiredModel) -> None:
        try:
            self._wanted.set(name, wish)
            failpoint("brain.wished")
        except OSError as error:
            text = f"the state directory cannot be written ({error.strerror}); nothing was changed"
            raise ServerError("unavailable", text, model=name) from error

    def _is_leaving(self, name: str) -> bool:
        model = self._fleet.model(name)
        leaving = (each for each in model.revisions if each.role is RevisionRole.RETIRING) if model is not None else ()
        return any(instance.can_be_stopped() for edition in leaving for instance in edition.instances())


def _heard(task: asyncio.Task[dict[str, Any]]) -> None:  # the verb's result, as JSON
    """Whoever waited has the outcome; that nobody waits any more is no fault."""
    if not task.cancelled():
        task.exception()


def load_result(model: Model, seconds: float) -> dict[str, Any]:  # the verb's result, as JSON
    """What a load or unload came to."""
    versions = {each.spec.version: str(state_of(each)) for each in model.active.versions} if model.active else {}
    return {"name": model.name, "state": str(model.state()), "versions": versions, "seconds": round(seconds, 3)}


def _refusal(name: str, failure: WorkerFailure) -> MmsupError:
    code = failure.code if failure.code in _LOAD_ERROR_CODES else "load_failed"
    return make_error(code, f"failed to load '{name}': {failure.text}", model=name)
