"""What a caller hears while no worker serves its model: wait, or which error."""

from __future__ import annotations

import pytest

from mmsup.gateway.dispatch.router import unavailable_error
from mmsup.ipc.messages.gateway_control import VersionState


def state(word: str, code: str = "", retry_after_s: float = 0.0) -> VersionState:
    return VersionState("1", word, code, "because", retry_after_s, None, None)


@pytest.mark.parametrize(
    "word", ["absent", "starting", "loading", "warming", "ready", "draining", "stopping", "backoff"]
)
def test_what_is_coming_is_waited_for(word: str) -> None:
    assert unavailable_error("m", state(word), grace_s=5, deadline_s=5) is None


@pytest.mark.parametrize(
    ("said", "grace_s", "deadline_s", "code"),
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
def test_what_is_not_coming_in_time_is_an_error_at_once(
    said: VersionState, grace_s: float, deadline_s: float, code: str
) -> None:
    error = unavailable_error("m", said, grace_s, deadline_s)
    assert error is not None
    assert error.code == code
    assert error.model == "m"


def test_a_retry_time_is_passed_on() -> None:
    error = unavailable_error("m", state("backoff", "", 60), 5, 5)
    assert error is not None
    assert error.retry_after_s == 60
