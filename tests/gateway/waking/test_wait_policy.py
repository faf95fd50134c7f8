"""Whether a request waits for a model that is loaded from sleep, and what it is answered if not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.gateway.waking.request_wait import ColdStart, RequestWait
from mmsup.gateway.waking.wait_policy import wait_error
from mmsup.ipc.errors import MmsupError, ServerError, make_error
from mmsup.ipc.messages.gateway_control import VersionState

S = 1_000_000_000
NOW = 1000 * S


def state(name: str, code: str = "", reason: str = "", wake_wait_s: float = 30.0) -> VersionState:
    return VersionState("1", name, code, reason, 0.0, None, None, wake_wait_s)


def cold(waited_s: float, limit_s: float = 30.0, client_s: float = 0.0) -> RequestWait:
    """A request that has waited so long, whose own deadline is `client_s` from now, 0 for none."""
    client_ns = NOW + int(client_s * S) if client_s else 0
    wait = RequestWait(NOW - S, client_ns)  # the model's own deadline has passed: it does not count
    wait.cold_since_ns, wait.cold_limit_s = NOW - int(waited_s * S), limit_s
    return wait


def refused(code: str, text: str = "no room: 3 GiB of 2 GiB") -> RequestWait:
    wait = cold(1)
    wait.start = ColdStart(is_done=True, error=make_error(code, text, model="m"))
    return wait


@pytest.mark.parametrize("name", ["asleep", "absent", "starting", "loading", "warming", "ready", "stopping"])
def test_a_request_waits_for_its_model_longer_than_for_a_restart(name: str) -> None:
    assert wait_error("m", state(name), cold(29), NOW - 10 * S, NOW) is None


def test_when_the_time_of_the_model_is_over_the_error_names_its_key() -> None:
    error = wait_error("m", state("loading"), cold(31), NOW + 60 * S, NOW)  # of a restart there is time left
    assert error is not None
    assert (error.code, error.retryable) == ("model_loading", True)
    assert "cold_start_timeout" in error.text
    assert "30 s" in error.text
    assert error.retry_after_s


def test_the_deadline_of_the_client_ends_its_wait() -> None:
    assert wait_error("m", state("loading"), cold(5, client_s=1), NOW, NOW) is None
    error = wait_error("m", state("loading"), cold(5, client_s=-1), NOW, NOW)
    assert error is not None
    assert error.code == "deadline_exceeded"


def test_a_failed_load_is_told_at_once_as_an_explicit_load_would_tell_it() -> None:
    broken = state("backoff", "model_failed", "the model raised ValueError: no weights", 0.0)
    error = wait_error("m", broken, cold(1), NOW, NOW)
    assert error is not None
    assert (error.code, error.text) == ("model_failed", "failed to load 'm': the model raised ValueError: no weights")


def test_a_load_without_room_is_told_with_its_figures_and_may_be_asked_for_again_soon() -> None:
    broken = VersionState("1", "backoff", "insufficient_memory", "it needs 3 GiB of 2 GiB", 300.0, None, None)
    error = wait_error("m", broken, cold(1), NOW, NOW)
    assert error is not None
    assert (error.code, error.text) == ("insufficient_memory", "failed to load 'm': it needs 3 GiB of 2 GiB")
    assert error.retry_after_s == 1


@pytest.mark.parametrize("retryable", [False, True])
def test_a_load_that_failed_says_whether_another_request_is_worth_a_try(retryable: bool) -> None:
    broken = replace(state("backoff", "model_failed", "worker m/1 was killed by SIGKILL"), retryable=retryable)
    for wait in (cold(1), RequestWait(NOW + S)):
        error = wait_error("m", broken, wait, NOW + S, NOW)
        assert error is not None
        assert (error.code, error.retryable) == ("model_failed", retryable)


@pytest.mark.parametrize(
    ("told", "code"),
    [("does_not_fit", "does_not_fit"), ("load_failed", "model_failed"), ("conflict", "model_restarting")],
)
def test_a_load_that_cannot_begin_is_answered_with_the_reason(told: str, code: str) -> None:
    error = wait_error("m", state("asleep"), refused(told), NOW, NOW)
    assert error is not None
    assert (error.code, error.text) == (code, "no room: 3 GiB of 2 GiB")


def test_a_refusal_is_forgotten_once_the_model_is_being_loaded() -> None:
    assert wait_error("m", state("loading"), refused("does_not_fit"), NOW, NOW) is None


@pytest.mark.parametrize("seed", range(300))
def test_whatever_happens_a_request_neither_waits_beyond_its_bounds_nor_ends_within_them(seed: int) -> None:
    rng = random.Random(seed)
    limit_s, client_s = rng.uniform(1, 60), rng.choice([0.0, rng.uniform(1, 60)])
    began, now = NOW, NOW
    wait = RequestWait(NOW + rng.randint(0, 90) * S, NOW + int(client_s * S) if client_s else 0)
    wait.cold_since_ns, wait.cold_limit_s = began, limit_s
    restart_s = rng.choice([0, 100])
    error: MmsupError | None = None
    end_s = min(limit_s, client_s or limit_s)
    while error is None:
        now += int(rng.uniform(0.1, 5) * S)
        name = rng.choice(["asleep", "absent", "starting", "loading", "warming"])
        error = wait_error("m", state(name), wait, began + restart_s * S, now)
        assert (error is None) == ((now - began) / S < end_s)
    assert error.code == ("deadline_exceeded" if client_s and (now - began) / S >= client_s else "model_loading")
    assert error.retryable


@pytest.mark.parametrize(("client_s", "deadline_s"), [(0.0, 9.0), (5.0, 5.0), (60.0, 9.0)])
def test_the_models_own_deadline_starts_again_when_it_is_loaded_and_the_clients_does_not(
    client_s: float, deadline_s: float
) -> None:
    wait = cold(10, client_s=client_s)
    assert wait.end_cold(NOW) == 10 * S
    assert (wait.deadline_ns - NOW) / S == deadline_s
    assert wait.left_s(NOW) == deadline_s


def test_a_request_that_does_not_wait_for_a_load_is_answered_as_ever() -> None:
    wait = RequestWait(NOW + S)
    assert wait_error("m", state("backoff", wake_wait_s=0), wait, NOW + S, NOW) is None
    error = wait_error("m", state("backoff", wake_wait_s=0), wait, NOW, NOW)
    assert error is not None
    assert error.code == "model_restarting"
    assert isinstance(wait_error("m", state("backoff"), wait, NOW + 5 * S, NOW + 2 * S), ServerError)
