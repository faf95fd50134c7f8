"""Bounds on what is open: each model's own, and the one that all share by what is free."""

from __future__ import annotations

import random

import pytest

from harness.worker_peer import spec
from mmsup.gateway.dispatch.admission import AdmissionControl
from mmsup.ipc.errors import ServerError


def filled(load: AdmissionControl, *names: str) -> dict[str, int]:
    """How many requests each model gets if all are flooded in turn."""
    open_to = list(names)
    while open_to:
        for name in list(open_to):
            try:
                load.check(name, None)
            except ServerError:
                open_to.remove(name)
            else:
                load.enter(name)
    return dict(load.requests_by_model)


def test_a_models_own_bound_is_kept_and_named() -> None:
    load, own = AdmissionControl(100, 100), spec("a", max_queue=3)
    for _ in range(3):
        load.check("a", own)
        load.enter("a")
    with pytest.raises(ServerError, match="Exceeds maximum queue size: model 'a' has 3 requests of 3") as refused:
        load.check("a", own)
    assert (refused.value.code, refused.value.model, refused.value.retry_after_s) == ("queue_full", "a", 1)
    load.leave("a", 0)
    load.check("a", own)


def test_one_model_alone_gets_half_and_leaves_half() -> None:
    assert filled(AdmissionControl(1000, 1), "a") == {"a": 500}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_flooded_models_share_alike_and_leave_as_much_for_the_next_one(count: int) -> None:
    load = AdmissionControl(1000, 1)
    given = filled(load, *(f"m{number}" for number in range(count)))
    share = 1000 // (count + 1)
    assert all(abs(each - share) <= 1 for each in given.values()), given
    assert load.open_requests <= 1000 - share + count
    load.check("another", None)


def test_a_model_with_nothing_open_is_refused_only_when_nothing_is_free() -> None:
    load = AdmissionControl(4, 1)
    for name in "abc":
        load.check(name, None)
        load.enter(name)
    load.check("d", None)
    load.enter("d")
    with pytest.raises(ServerError, match="the server has 4 requests open, 0 of them of model 'e'"):
        load.check("e", None)


def test_bytes_are_shared_likewise_and_one_body_alone_always_fits() -> None:
    load = AdmissionControl(10, 1000)
    load.reserve(spec("a"), 5000)
    with pytest.raises(ServerError, match="the server holds 5000 bytes of requests, 0 of them for model 'b'"):
        load.reserve(spec("b"), 1)
    load.enter("a")
    load.leave("a", 5000)
    load.reserve(spec("a"), 500)
    with pytest.raises(ServerError, match="1000 are shared among all models"):
        load.reserve(spec("a"), 1)
    load.reserve(spec("b"), 250)


def test_whatever_comes_and_goes_the_sums_are_those_of_what_is_open() -> None:
    draw, load, held = random.Random(4), AdmissionControl(50, 10_000), list[tuple[str, int]]()
    for _ in range(20_000):
        name = draw.choice("abcde")
        if held and draw.random() < 0.5:
            load.leave(*held.pop(draw.randrange(len(held))))
        else:
            try:
                load.check(name, spec(name, max_queue=20, max_queue_bytes=4000))
                load.enter(name)
                size = draw.choice([0, 0, 10, 900])
                held.append((name, 0))
                if size:
                    load.reserve(spec(name, max_queue=20, max_queue_bytes=4000), size)
                    held[-1] = (name, size)
            except ServerError:
                pass
        assert load.open_requests == len(held) <= 50
        assert load.open_bytes == sum(size for _, size in held)
        assert sum(load.requests_by_model.values()) == len(held)
    while held:
        load.leave(*held.pop())
    assert (load.open_requests, load.open_bytes, load.requests_by_model) == (0, 0, {})
