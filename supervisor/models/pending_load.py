"""One load of one model, from the request to its outcome, with all callers that wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, make_error
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.revision import Revision, RevisionRole
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.model import Model, state_of
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository.scanner import ModelEntry
from mmsup.supervisor.state.desired_state import DesiredState

GATEWAY_BARRIER_S: Final = 1.0
"""How long an answer waits for the gateways to apply what they were sent; a slower one is about to be killed."""
_LOAD_ERROR_CODES: Final = frozenset(
    {"load_failed", "load_timeout", "does_not_fit", "not_implemented", "gpu_fault", "insufficient_gpu_memory"}
)
"""Codes that a failed load is answered with; every other failure is `load_failed`."""

Json = dict[str, Any]  # one JSON object
ProgressListener = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadContext:
    settings: Settings
    model_set: ModelSet
    desired_state: DesiredState
    wait_for_gateways: Callable[[float], Awaitable[None]]
    """Until all of them have applied what they were sent so far, at the latest after so many seconds."""
    event_log: EventLog

    async def send_route(self, name: str) -> None:
        """Have the gateways know the model as it is now."""
        self.model_set.send_route(name)
        await self.wait_for_gateways(GATEWAY_BARRIER_S)


class PendingLoad:
    def __init__(self, context: LoadContext, entry: ModelEntry, config: str) -> None:
        self.name = entry.name
        self.config = config
        self.listeners: list[ProgressListener] = []
        self.task: asyncio.Task[Json] | None = None
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started_s = time.monotonic()
        self._is_reload = False
        self._context = context
        self._entry = entry
        self._revision: Revision | None = None
        self._exited: asyncio.Event | None = None
        """Set when the processes of the former revision have exited; None while no one waits for that."""

    async def run(self) -> None:
        """Load the model; MmsupError if it cannot serve."""
        model_set = self._context.model_set
        model = model_set.register(self._entry)
        model.wanted = True
        active = model.active
        self._is_reload = active is not None and any(each.is_serving() for each in active.versions)
        role = RevisionRole.STAGED if self._is_reload else RevisionRole.ACTIVE
        try:
            if not self._is_reload:
                model.is_waiting_for_exit = True
                if active is not None:
                    revision_changes.retire(active)
                await self._wait_for_exit()
            self._revision = revision_changes.add_revision(model_set, model, self._entry, role, self.config)
            await self._outcome
        finally:
            model.is_waiting_for_exit = False
            model_set.mark_changed(model.name)
            if self._outcome.done() and not self._outcome.cancelled():
                self._outcome.exception()  # raised above already, or nobody waited for it

    async def announce(self) -> Json:
        """After `run`: have the gateways know the model as it is now; the command's result."""
        model = self._context.model_set.models[self.name]
        await self._context.send_route(self.name)
        seconds = time.monotonic() - self._started_s
        event = "model_reloaded" if self._is_reload else "model_loaded"
        self._context.event_log.record(event, f"serves after {seconds:.2f} s", model=self.name)
        return load_result(model, seconds)

    def fail(self, error: MmsupError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    def on_model_changed(self) -> None:
        model = self._context.model_set.model(self.name)
        if self._exited is not None and not has_exiting_processes(model):
            self._exited.set()
        revision = self._revision
        if model is None or revision is None or self._outcome.done():
            return
        is_staged = revision.role is RevisionRole.STAGED
        failure = revision.load_failure()
        if failure is not None:
            if is_staged:
                revision_changes.retire(revision)
            self.fail(_load_error(self.name, failure))
        elif revision.is_fully_ready():
            if is_staged:
                revision_changes.activate(self._context.model_set, model, revision)
            self._outcome.set_result(None)

    async def _wait_for_exit(self) -> None:
        if not has_exiting_processes(self._context.model_set.model(self.name)):
            return
        self._exited = asyncio.Event()
        limit_s = max((spec.deadline_s + spec.load_timeout_s for spec in self._entry.specs), default=0.0)
        try:
            async with asyncio.timeout(limit_s):
                await self._exited.wait()
        except TimeoutError:
            text = f"failed to load '{self.name}': its former processes are not gone yet"
            raise CallerError("conflict", text, model=self.name) from None
        finally:
            self._exited = None
        if self._outcome.done():
            await self._outcome  # raises: it was unloaded meanwhile


def has_exiting_processes(model: Model | None) -> bool:
    """Whether processes of a retiring revision are still to exit, and can."""
    retiring = [each for each in model.revisions if each.role is RevisionRole.RETIRING] if model is not None else []
    return any(instance.can_be_stopped() for revision in retiring for instance in revision.instances())


def load_result(model: Model, seconds: float) -> Json:
    versions = {each.spec.version: str(state_of(each)) for each in model.active.versions} if model.active else {}
    return {"name": model.name, "state": str(model.state()), "versions": versions, "seconds": round(seconds, 3)}


def _load_error(name: str, failure: WorkerFailure) -> MmsupError:
    code = failure.code if failure.code in _LOAD_ERROR_CODES else "load_failed"
    return make_error(code, f"failed to load '{name}': {failure.text}", model=name)
