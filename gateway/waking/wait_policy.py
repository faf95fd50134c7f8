"""Whether a request may go on waiting for a version that has no worker, and if not, what it is answered. Pure."""

from __future__ import annotations

from typing import Final

from mmsup.gateway.waking.request_wait import RequestWait
from mmsup.ipc.errors import AWAITING_ROOM, MmsupError, ModelError, ServerError, WorkerError, make_error
from mmsup.ipc.messages.gateway_control import VersionState

ASLEEP: Final = "asleep"
_NOT_LOADED: Final = frozenset({ASLEEP, "absent", "starting", "loading", "warming"})
_WAITABLE_STATES: Final = _NOT_LOADED | {"ready", "draining", "stopping", "backoff"}


def wait_error(name: str, state: VersionState, wait: RequestWait, grace_end_ns: int, now_ns: int) -> MmsupError | None:
    """Why a request cannot wait (any longer); None if it can. `grace_end_ns`: the end of its wait for a model that is
    restarting."""
    if state.state == ASLEEP and wait.start is not None and wait.start.error is not None:
        return _as_answer(name, wait.start.error)
    error = unavailable_error(name, state, wait.grace_s(grace_end_ns, now_ns), wait.left_s(now_ns))
    if error is None or not wait.cold_since_ns or error.code == "deadline_exceeded":
        return error
    if is_broken(state):
        text = f"failed to load '{name}': {state.reason or 'no reason is known'}"
        # Without room it is asleep again at once, and tried again by the next request.
        retry_after_s = 1 if state.code in AWAITING_ROOM else error.retry_after_s
        return make_error(error.code, text, model=name, retry_after_s=retry_after_s, retryable=error.retryable)
    if error.code == "model_loading":
        text = f"model '{name}' was asleep and is not loaded after {wait.cold_limit_s:g} s, its `cold_start_timeout`"
        return WorkerError("model_loading", f"{text} (state: {state.state})", model=name, retry_after_s=1)
    return error


def _as_answer(name: str, error: MmsupError) -> MmsupError:
    """The reason of a load that could not begin, as requests to the model are answered with it."""
    codes = {"load_failed": "model_failed", "conflict": "model_restarting"}
    code = codes.get(error.code, error.code)
    return make_error(code, error.text, model=name, retry_after_s=error.retry_after_s, retryable=error.retryable)


def is_broken(state: VersionState) -> bool:
    """Such a model is started again, but a request should not wait for that."""
    return state.code in ModelError.codes or state.code in AWAITING_ROOM


def unavailable_error(name: str, state: VersionState, grace_s: float, deadline_s: float) -> MmsupError | None:
    """Why a version without a worker cannot be waited for (any longer); None if it can."""
    if state.state not in _WAITABLE_STATES:
        code = state.code or "model_failed"
        which = f"model '{name}' version {state.version}" if state.version else f"model '{name}'"
        text = f"{which} is {state.state}: {state.reason or 'no reason is known'}"
        return make_error(code, text, model=name, retry_after_s=max(state.retry_after_s, 1))
    if deadline_s <= 0:
        text = f"Request timeout expired while model '{name}' was {state.state}"
        return ServerError("deadline_exceeded", text, model=name)
    if grace_s > 0 and state.retry_after_s <= grace_s and not is_broken(state):
        return None
    wait_s = max(state.retry_after_s, 1)
    if is_broken(state):
        text = f"model '{name}' is not ready (state: {state.state}): {state.reason}"
        return make_error(state.code, text, model=name, retry_after_s=wait_s, retryable=state.retryable or None)
    code = "model_loading" if state.state in _NOT_LOADED else "model_restarting"
    text = f"model '{name}' is not ready (state: {state.state}): {state.reason or 'not up yet'}"
    return WorkerError(code, text, model=name, retry_after_s=wait_s)
