"""Which models may be put to sleep, and when they are for want of requests."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.models.sleep_state import SleepReason
from mmsup.supervisor.on_demand.sleep_policy import DEFAULT_TTL_S, SleepFacts, is_due, refusal, ttl_s

SERVING = SleepFacts(is_wanted=True, is_asleep=False, is_pinned=False, is_changing=False, is_serving=True)
SPEC = ModelSpec("m", "1", "/srv/m/1", "model.onnx", "ort", "onnxruntime_onnx")


@pytest.mark.parametrize("reason", list(SleepReason))
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"is_wanted": False}, "ctl load"),
        ({"is_pinned": True}, "pin"),
        ({"is_changing": True}, "being loaded"),
        ({"is_ensemble": True}, "put its steps to sleep"),
    ],
)
def test_what_keeps_a_model_from_being_put_to_sleep(reason: SleepReason, changed: dict[str, bool], words: str) -> None:
    found = refusal(replace(SERVING, **changed), reason)
    assert bool(found) is bool(words)
    assert words in found


def test_only_people_put_a_model_to_sleep_that_does_not_serve() -> None:
    broken = replace(SERVING, is_serving=False)
    assert refusal(broken, SleepReason.ASKED) == ""
    assert refusal(broken, SleepReason.TTL)
    assert refusal(broken, SleepReason.EVICTED)


@pytest.mark.parametrize(
    ("keys", "is_on_demand", "expected"),
    [
        ({}, False, 0.0),
        ({}, True, DEFAULT_TTL_S),
        ({"ttl_s": 7.0}, False, 7.0),
        ({"ttl_s": 0.0}, True, 0.0),
        ({"ttl_s": 7.0, "pin": True}, True, 0.0),
    ],
)
def test_how_long_a_model_is_kept(keys: dict[str, float], is_on_demand: bool, expected: float) -> None:
    assert ttl_s(replace(SPEC, **keys), is_on_demand=is_on_demand) == expected  # type: ignore[arg-type] # by name


@pytest.mark.parametrize("seed", range(100))
def test_a_model_is_kept_for_its_ttl_after_its_start_and_after_each_request_and_no_longer(seed: int) -> None:
    rng = random.Random(seed)
    ttl, now_s = rng.choice([0.0, 1.0, 30.0]), 1000.0
    ready_s, last_use_s = now_s, 0.0
    while now_s < 1200:
        now_s += rng.uniform(0.1, 20)
        is_idle = now_s - max(ready_s, last_use_s) >= ttl > 0
        assert is_due(ttl, ready_s, last_use_s, now_s) is is_idle
        if is_idle:
            ready_s = now_s + rng.uniform(0, 5)  # asked for, and loaded
            now_s = ready_s
        elif rng.random() < 0.5:
            last_use_s = now_s
