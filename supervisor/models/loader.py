"""Load, reload and unload models, one operation at a time for each model.

A reload is make-before-break: the new revision is ready before the old one is retired, and if any instance of the new
one fails, the old one stays and the caller gets the error. Concurrent loads of the same configuration are one load. An
unload answers when nothing is routed to the model any more; a load under way ends with `conflict` then. A load after
an unload waits until the old processes have exited and freed their memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError, make_error
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.model import Model, state_of
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import Revision, RevisionRole
from mmsup.supervisor.models.sleep_state import SleepPhase
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository import scanner
from mmsup.supervisor.repository.scanner import ModelEntry
from mmsup.supervisor.state.desired_state import DesiredModel, DesiredState

GATEWAY_BARRIER_S: Final = 1.0
"""How long an answer waits for the gateways to apply what they were sent; a slower one is about to be killed."""
_LOAD_ERROR_CODES: Final = frozenset(
    {
        *("load_failed", "load_timeout", "does_not_fit", "not_implemented", "gpu_fault"),
        *("insufficient_gpu_memory", "insufficient_memory", "too_many_files"),
    }
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

    def save_desired(self, name: str, desired: DesiredModel, loss: str = "") -> None:
        """Save what somebody asks for. If that cannot be done: ServerError, or where little is lost an event that says
        what; `loss`: what will be after a crash of the server."""
        try:
            self.desired_state.set(name, desired)
            failpoint("brain.wished")
        except OSError as error:
            why = f"the state directory cannot be written ({error.strerror})"
            if not loss:
                raise ServerError("unavailable", f"{why}; nothing was changed", model=name) from error
            self.event_log.record("not_saved", f"{why}: after a crash of the server {loss}", model=name)


class ModelLoader:
    def __init__(self, context: LoadContext) -> None:
        self._context = context
        self._model_set = context.model_set
        self.on_no_room: Callable[[Model], None] = lambda _: None
        """Gets each model that was loaded from sleep and for which there was no room."""
        self.pending: dict[str, PendingLoad] = {}
        """The loads under way, by model."""
        self._abandoned: set[PendingLoad] = set()
        """Those of them whose models were unloaded meanwhile, until they have noticed."""
        self._tasks: set[asyncio.Task[Json]] = set()
        self._is_draining = False

    async def load(
        self,
        name: str,
        config: str = "",
        on_progress: ProgressListener = lambda _: None,
        *,
        by_hand: bool = True,
        is_partial: bool = False,
    ) -> Any:
        """Load or reload; the command's result as JSON when the model serves, MmsupError if it cannot.

        `config`: ModelConfig as JSON instead of the repository's. `by_hand`: a person wants it, so it is desired state.
        `is_partial`: versions with a fault are left out.
        """
        while (pending := self.pending.get(name)) in self._abandoned:
            assert pending is not None
            await pending.end()
        if self._is_draining:
            raise ServerError("draining", "the server is draining and loads nothing any more", model=name)
        if pending is None:
            pending = self._start(name, config, by_hand=by_hand, is_partial=is_partial)
        elif pending.config != config:
            raise CallerError("conflict", f"failed to load '{name}': it is being loaded from another content")
        pending.listeners.append(on_progress)
        assert pending.task is not None, "a load without a task"
        try:
            # Shielded: the load goes on if this caller leaves.
            return await asyncio.shield(pending.task)
        finally:
            pending.listeners.remove(on_progress)

    async def unload(self, name: str, *, by_hand: bool = True) -> Any:
        """Unload; the command's result as JSON when nothing is routed to the model any more."""
        started_s = time.monotonic()
        model = self._model_set.model(name)
        if model is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        if by_hand:
            self._context.save_desired(name, DesiredModel(up=False))
        if name in self.pending:
            text = f"failed to load '{name}': it was unloaded meanwhile"
            self.pending[name].fail(CallerError("conflict", text, model=name))
            self._abandoned.add(self.pending[name])
        was_wanted = model.wanted
        self.stop_wanted(model)
        await self._context.send_route(name)
        if was_wanted:
            text = "unloaded; nothing is routed to it any more"
            self._context.event_log.record("model_unloaded", text, model=name)
        return load_result(model, time.monotonic() - started_s)

    def start_wanted(self, entry: ModelEntry, config: str = "") -> None:
        """Start a model that nobody waits for: at the start of the server, or after a change of desired state."""
        model = self._model_set.register(entry)
        model.wanted = True
        if entry.errors:
            record_errors(self._context, entry)
        if entry.specs:
            revision_changes.add_revision(self._model_set, model, entry, RevisionRole.ACTIVE, config)

    def stop_wanted(self, model: Model) -> None:
        model.wanted, model.unloaded = False, True
        model.sleep.phase = SleepPhase.AWAKE
        self._model_set.mark_changed(model.name)
        for revision in list(model.revisions):
            if revision.role is not RevisionRole.RETIRING:
                revision_changes.retire(revision)

    @property
    def is_idle(self) -> bool:
        return not self.pending

    def on_models_changed(self, names: set[str]) -> None:
        """Give the pending loads of these models their outcome if it is known now."""
        if self.pending:
            for name in names & self.pending.keys():
                self.pending[name].on_model_changed(self.on_no_room)

    def on_progress(self, instance: Instance, text: str) -> None:
        pending = self.pending.get(instance.revision.spec.name)
        for listener in list(pending.listeners) if pending is not None else ():
            listener(f"version {instance.revision.spec.version}: {text}")

    def stop_accepting(self) -> None:
        """The server is draining: fail the loads under way and all that come."""
        self._is_draining = True
        for name, pending in self.pending.items():
            pending.fail(ServerError("draining", f"failed to load '{name}': the server is draining", model=name))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, name: str, config: str, *, by_hand: bool, is_partial: bool) -> PendingLoad:
        entry = self._read_entry(name, config, is_partial=is_partial)
        if by_hand:
            model = self._model_set.model(name)
            is_wake = model is not None and model.sleep.is_asleep and model.sleep.config == config
            loss = "it is asleep until it is asked for" if is_wake else ""
            self._context.save_desired(name, DesiredModel(up=True, config=config), loss)
        pending = self.pending[name] = PendingLoad(self._context, entry, config)
        pending.task = asyncio.get_running_loop().create_task(self._run(pending), name=f"load {name}")
        self._tasks.add(pending.task)
        pending.task.add_done_callback(self._on_done)
        return pending

    async def _run(self, pending: PendingLoad) -> Json:
        try:
            await pending.run()
        finally:
            del self.pending[pending.name]
            self._abandoned.discard(pending)
        return await pending.announce()

    def _on_done(self, task: asyncio.Task[Json]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its callers have got it; without callers it must not be logged as never retrieved

    def _read_entry(self, name: str, config: str, *, is_partial: bool) -> ModelEntry:
        """The model as the repository holds it now; MmsupError if it cannot be loaded."""
        entry = scanner.scan_model(self._context.settings, name)
        if entry is None:
            raise _missing_error(self._context, name)
        if config:
            entry = scanner.with_config(entry, config)
        entry = scanner.with_group_error(entry, _specs_beside(entry, self._context))
        entry = scanner.with_step_errors(entry, _entries_of_steps(entry, self._context))
        if entry.errors and not (is_partial and entry.specs):
            code = "bad_request" if config else "load_failed"
            error = make_error(code, f"failed to load '{name}': {entry.public_reason}", model=name)
            error.operator_text = f"failed to load '{name}': {entry.reason}{entry.paste}"
            raise error
        return entry


def _missing_error(context: LoadContext, name: str) -> MmsupError:
    """Why no repository holds a model. One that is known may be in a repository that is away for a while."""
    lost = scanner.unreadable_repositories(context.settings)
    if not lost or context.model_set.model(name) is None:
        text = f"failed to load '{name}', failed to poll from model repository"
        return CallerError("unknown_model", text, model=name)
    error = make_error("load_failed", f"failed to load '{name}': a model repository cannot be read", model=name)
    error.operator_text = f"failed to load '{name}': {'; '.join(map(str, lost))}"
    return error


class PendingLoad:
    """One load of one model, from the request to its outcome, with all callers that wait for it."""

    def __init__(self, context: LoadContext, entry: ModelEntry, config: str) -> None:
        self.name = entry.name
        self.config = config
        self.listeners: list[ProgressListener] = []
        self.task: asyncio.Task[Json] | None = None
        self._outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started_s = time.monotonic()
        self._is_reload = self._is_wake = False
        self._context = context
        self._entry = entry
        self._revision: Revision | None = None
        self._exited: asyncio.Event | None = None
        """Set when the processes of the former revision have exited; None while no one waits for that."""

    async def run(self) -> None:
        """Load the model; MmsupError if it cannot serve."""
        if self._outcome.done():
            await self._outcome  # raises: it was unloaded before this began
        model_set = self._context.model_set
        model = model_set.register(self._entry)
        model.wanted = True
        if model.sleep.is_asleep:
            model.sleep.phase, self._is_wake = SleepPhase.WAKING, True
        active = model.active
        self._is_reload = active is not None and any(each.is_serving() for each in active.versions)
        role = RevisionRole.STAGED if self._is_reload else RevisionRole.ACTIVE
        try:
            if not self._is_reload:
                model.is_waiting_for_exit = True
                if active is not None:
                    revision_changes.retire(active)
                self._revision = revision_changes.restore_offloaded(model_set, model, self._entry, self.config)
                if self._revision is None:
                    await self._wait_for_exit()
            if self._revision is None:
                self._revision = revision_changes.add_revision(model_set, model, self._entry, role, self.config)
            await self._outcome
        finally:
            model.is_waiting_for_exit = False
            if self._revision is None and model.sleep.phase is SleepPhase.WAKING:
                model.sleep.phase = SleepPhase.ASLEEP
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

    async def end(self) -> None:
        assert self.task is not None, "a load without a task"
        await asyncio.wait([self.task])

    def fail(self, error: MmsupError) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
        if self._exited is not None:
            self._exited.set()

    def on_model_changed(self, on_no_room: Callable[[Model], None]) -> None:
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
            if self._is_wake and failure.has_no_room:
                on_no_room(model)
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
            await self._outcome  # raises: it was unloaded, or the server drains


def record_errors(context: LoadContext, entry: ModelEntry) -> None:
    context.event_log.record("load_failed", entry.reason + entry.paste, model=entry.name, code="load_failed")


def has_exiting_processes(model: Model | None) -> bool:
    """Whether processes of a retiring revision are still to exit, and can."""
    retiring = [each for each in model.revisions if each.role is RevisionRole.RETIRING] if model is not None else []
    return any(instance.can_be_stopped() for revision in retiring for instance in revision.instances())


def load_result(model: Model, seconds: float) -> Json:
    versions = {each.spec.version: str(state_of(each)) for each in model.active.versions} if model.active else {}
    return {"name": model.name, "state": str(model.state()), "versions": versions, "seconds": round(seconds, 3)}


def _specs_beside(entry: ModelEntry, context: LoadContext) -> list[ModelSpec]:
    """Those of the other models of its co-location group, as the repository holds them now."""
    groups = {spec.group for spec in entry.specs if spec.group}
    names = [each.name for each in context.model_set.models.values() if each.groups() & groups]
    found = [scanner.scan_model(context.settings, name) for name in names]
    return [spec for each in found if each is not None for spec in each.specs]


def _entries_of_steps(entry: ModelEntry, context: LoadContext) -> dict[str, ModelEntry]:
    """The models that an ensemble needs, as the repository holds them now; none of any other model."""
    found, todo = dict[str, ModelEntry](), [entry]
    while todo:
        for step in [step for spec in todo.pop().specs for step in spec.steps if step.model not in found]:
            other = scanner.scan_model(context.settings, step.model)
            if other is not None:
                found[step.model] = other
                todo.append(other)
    return found | {entry.name: entry}


def _load_error(name: str, failure: WorkerFailure) -> MmsupError:
    code = failure.code if failure.code in _LOAD_ERROR_CODES else "load_failed"
    error = make_error(code, f"failed to load '{name}': {failure.text}", model=name)
    error.operator_text = f"failed to load '{name}': {failure.operator_text}"
    return error
