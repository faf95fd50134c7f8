"""Loads models that are asleep, because a request has come for one or somebody asks for it.

However many gateways and people ask, a model is loaded once. One whose load could not even begin (its files have a
fault, memory has no room) is not tried again for each request: until its next try is due all get the same reason.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from mmsup.ipc.errors import AWAITING_ROOM, CallerError, MmsupError, ServerError, make_error
from mmsup.supervisor.models.loader import LoadContext, ModelLoader, ProgressListener, load_result
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.revision import RevisionRole
from mmsup.supervisor.models.sleep_state import SleepReason
from mmsup.supervisor.processes.backoff import delay_s

Json = dict[str, Any]  # one JSON object


@dataclass(slots=True)
class RefusedWake:
    error: MmsupError
    stamp: str
    """Of the files that the model had; others are tried at once."""
    count: int
    retry_at_s: float


class RefusedWakes:
    """Models whose loads could not begin, with the time of their next try. Pure but for the jitter."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._by_model: dict[str, RefusedWake] = {}

    def put(self, name: str, stamp: str, error: MmsupError, now_s: float) -> None:
        before = self._by_model.get(name)
        count = before.count + 1 if before is not None and before.stamp == stamp else 1
        self._by_model[name] = RefusedWake(error, stamp, count, now_s + delay_s(count, self._rng))

    def get(self, name: str, stamp: str, now_s: float) -> MmsupError | None:
        """What a request to the model is answered now; None if the model is to be tried (again)."""
        found = self._by_model.get(name)
        if found is None or found.stamp != stamp or now_s >= found.retry_at_s:
            return None
        error, wait_s = found.error, found.retry_at_s - now_s
        return make_error(error.code, error.text, model=name, retry_after_s=wait_s, retryable=error.retryable)

    def drop(self, name: str) -> None:
        self._by_model.pop(name, None)


class Waker:
    def __init__(self, context: LoadContext, loader: ModelLoader) -> None:
        self._context = context
        self._loader = loader
        self._refused = RefusedWakes(random.Random())
        self.is_open = False
        """The models are as they were left, or started: before that none is loaded."""

    async def wake_for_request(self, name: str) -> Json:
        """As `wake`, for a gateway; `started`: this call was the first to ask."""
        model = self._wanted(name)
        stamp = model.entry.file_digest if model.entry is not None else ""
        is_first = model.sleep.is_asleep and name not in self._loader.pending
        if is_first:
            refused = self._refused.get(name, stamp, time.monotonic())
            if refused is not None:
                raise refused
            how = "loaded" if model.revision(RevisionRole.OFFLOADED) is None else "restored from host memory"
            self._context.event_log.record("model_waking", f"a request has come for it: it is {how}", model=name)
        try:
            result = await self._wake(model)
        except MmsupError as error:
            if is_first and model.sleep.is_asleep and error.code not in ("draining", "unavailable"):
                self._on_refused(model, stamp, error)
            raise
        self._refused.drop(name)
        return {**result, "started": is_first}

    async def wake(self, name: str, on_progress: ProgressListener) -> Json:
        """Load a model that is asleep, and wait for it; the command's result as JSON. One that serves stays; MmsupError
        if it neither serves nor is asleep."""
        model = self._wanted(name)
        is_loaded_now = model.sleep.is_asleep or name in self._loader.pending  # what others do to it next is theirs
        result = await self._wake(model, on_progress)
        if not is_loaded_now and (model.active is None or not model.active.is_any_serving()):
            raise _not_serving(model)
        self._refused.drop(name)
        return result

    def _on_refused(self, model: Model, stamp: str, error: MmsupError) -> None:
        self._refused.put(model.name, stamp, error, time.monotonic())
        model.sleep.failure = error.operator_text
        self._context.event_log.record("wake_refused", error.operator_text, model=model.name, code=error.code)

    async def _wake(self, model: Model, on_progress: ProgressListener = lambda _: None) -> Json:
        name = model.name
        pending = self._loader.pending.get(name)
        if model.sleep.is_asleep or pending is not None:
            config = pending.config if pending is not None else model.sleep.config
            try:
                result: Json = await self._loader.load(name, config, on_progress, by_hand=False, is_partial=True)
            except MmsupError as error:
                raise _of_eviction(model, error) from error
            model.sleep.failure = ""
            return result
        return load_result(model, 0.0)

    def _wanted(self, name: str) -> Model:
        if not self.is_open:
            raise ServerError("unavailable", "the server is starting; try again", model=name, retry_after_s=1)
        model = self._context.model_set.model(name)
        if model is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        if not model.wanted:
            text = f"'{name}' is not loaded: `mmsup ctl load {name}` loads it"
            raise CallerError("conflict", text, model=name, retryable=False)
        return model


def _not_serving(model: Model) -> MmsupError:
    """Why a model that is not asleep does not serve: it was loaded before, and is started again by itself."""
    state = model.state()
    code = {"backoff": "model_restarting", "failed": "model_failed"}.get(state, "model_loading")
    text = f"'{model.name}' is not asleep: it is {state}, and does not serve now"
    error = make_error(code, text, model=model.name, retry_after_s=None if code == "model_failed" else 1)
    error.operator_text = f"{text}: {model.reason()}" if model.reason() else text
    return error


def _of_eviction(model: Model, error: MmsupError) -> MmsupError:
    """The reason of a load that did not find room, for a model that had given its memory to another."""
    if error.code not in AWAITING_ROOM or model.sleep.reason is not SleepReason.EVICTED:
        return error
    text = f"'{model.name}' was put to sleep because its memory was needed, and does not fit now: {error.text}"
    made = make_error("evicted", text, model=model.name, retry_after_s=error.retry_after_s)
    made.operator_text = f"{model.sleep.why}, and it does not fit now: {error.operator_text}"
    return made
