"""Limits on open requests and bytes: each model's own, and the one that all models share by what is free."""

from __future__ import annotations

import random

import pytest

from harness.worker_peer import spec
from mmsup.gateway.waking.admission import AdmissionControl
from mmsup.ipc.errors import ServerError


def flood(admission: AdmissionControl, *names: str) -> dict[str, int]:
    """How many requests each model gets if all are flooded in turn."""
    admitted = list(names)
    while admitted:
        for name in list(admitted):
            try:
                admission.admit(name, None)
            except ServerError:
                admitted.remove(name)
    return dict(admission.requests_by_model)


def test_a_models_own_limit_holds_and_is_named() -> None:
    admission, own = AdmissionControl(100, 100), spec("a", max_queue=3)
    for _ in range(3):
        admission.admit("a", own)
    with pytest.raises(ServerError, match="Exceeds maximum queue size: model 'a' has 3 requests of 3") as refused:
        admission.admit("a", own)
    assert (refused.value.code, refused.value.model, refused.value.retry_after_s) == ("queue_full", "a", 1)
    admission.leave("a", 0)
    admission.admit("a", own)


def test_one_model_alone_gets_half_and_leaves_half() -> None:
    assert flood(AdmissionControl(1000, 1), "a") == {"a": 500}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_flooded_models_share_equally_and_leave_as_much_for_the_next_one(count: int) -> None:
    admission = AdmissionControl(1000, 1)
    given = flood(admission, *(f"m{number}" for number in range(count)))
    share = 1000 // (count + 1)
    assert all(abs(each - share) <= 1 for each in given.values()), given
    assert admission.open_requests <= 1000 - share + count
    admission.admit("another", None)


def test_a_model_with_nothing_open_is_refused_only_when_nothing_is_free() -> None:
    admission = AdmissionControl(4, 1)
    for name in "abcd":
        admission.admit(name, None)
    with pytest.raises(ServerError, match="the server has 4 requests open, 0 of them of model 'e'"):
        admission.admit("e", None)


def test_bytes_are_shared_likewise_and_one_body_alone_always_fits() -> None:
    admission = AdmissionControl(10, 1000)
    admission.reserve("a", spec("a"), 5000)
    with pytest.raises(ServerError, match="the server has 5000 bytes of requests open, 0 of them of model 'b'"):
        admission.reserve("b", spec("b"), 1)
    admission.admit("a", None)
    admission.leave("a", 5000)
    admission.reserve("a", spec("a"), 500)
    with pytest.raises(ServerError, match="`max_request_bytes`, 1000, are shared among all models"):
        admission.reserve("a", spec("a"), 1)
    admission.reserve("b", spec("b"), 250)


def test_the_last_request_that_leaves_is_reported() -> None:
    admission, reports = AdmissionControl(10, 1000), list[int]()
    admission.on_empty = lambda: reports.append(admission.open_requests)
    for name in "ab":
        admission.admit(name, None)
    admission.leave("a", 0)
    assert reports == []
    admission.leave("b", 0)
    assert reports == [0]


def test_the_sums_are_those_of_what_is_open_after_any_sequence() -> None:
    draw, admission, held = random.Random(4), AdmissionControl(50, 10_000), list[tuple[str, int]]()
    for _ in range(20_000):
        name = draw.choice("abcde")
        if held and draw.random() < 0.5:
            admission.leave(*held.pop(draw.randrange(len(held))))
        else:
            try:
                admission.admit(name, spec(name, max_queue=20, max_queue_bytes=4000))
                size = draw.choice([0, 0, 10, 900])
                held.append((name, 0))
                if size:
                    admission.reserve(name, spec(name, max_queue=20, max_queue_bytes=4000), size)
                    held[-1] = (name, size)
            except ServerError:
                pass
        assert admission.open_requests == len(held) <= 50
        assert admission.open_bytes == sum(size for _, size in held)
        assert sum(admission.requests_by_model.values()) == len(held)
    while held:
        admission.leave(*held.pop())
    assert (admission.open_requests, admission.open_bytes, admission.requests_by_model) == (0, 0, {})
