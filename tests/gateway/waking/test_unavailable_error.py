"""While no worker serves a model its requests wait, or get an error."""

from __future__ import annotations

import pytest

from mmsup.gateway.waking.wait_policy import unavailable_error
from mmsup.ipc.messages.gateway_control import VersionState


def state(name: str, code: str = "", retry_after_s: float = 0.0) -> VersionState:
    return VersionState("1", name, code, "because", retry_after_s, None, None)


@pytest.mark.parametrize(
    "name", ["absent", "starting", "loading", "warming", "ready", "draining", "stopping", "backoff"]
)
def test_a_worker_that_is_coming_is_waited_for(name: str) -> None:
    assert unavailable_error("m", state(name), grace_s=5, deadline_s=5) is None


@pytest.mark.parametrize(
    ("version", "grace_s", "deadline_s", "code"),
    [
        (state("failed", "model_failed"), 5, 5, "model_failed"),
        (state("failed", "crash_loop"), 5, 5, "crash_loop"),
        (state("failed"), 5, 5, "model_failed"),
        (state("loading"), 0, 5, "model_loading"),
        (state("ready"), 0, 5, "model_restarting"),
        (state("backoff", "worker_crashed", 60), 5, 5, "model_restarting"),
        (state("backoff", "crash_loop", 60), 5, 5, "crash_loop"),
        (state("backoff", "model_failed", 0.5), 5, 5, "model_failed"),
        (state("loading"), 5, 0, "deadline_exceeded"),
    ],
)
def test_a_worker_that_is_not_coming_in_time_is_an_error_at_once(
    version: VersionState, grace_s: float, deadline_s: float, code: str
) -> None:
    error = unavailable_error("m", version, grace_s, deadline_s)
    assert error is not None
    assert error.code == code
    assert error.model == "m"


def test_a_retry_time_is_passed_on() -> None:
    error = unavailable_error("m", state("backoff", "", 60), 5, 5)
    assert error is not None
    assert error.retry_after_s == 60


@pytest.mark.parametrize("code", ["too_many_files", "insufficient_gpu_memory"])
def test_a_model_that_waits_for_room_is_worth_another_try(code: str) -> None:
    error = unavailable_error("m", state("backoff", code, 300), 5, 5)
    assert error is not None
    assert (error.code, error.retryable, error.retry_after_s) == (code, True, 300)
