from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from mmsup.supervisor.models.readiness import ModelReadiness, ServerReadiness, server_readiness

GOOD = ModelReadiness("good", serving=True, has_outcome=True)
BAD = ModelReadiness("bad", serving=False, has_outcome=True)
NEW = ModelReadiness("new", serving=False, has_outcome=False)


@pytest.mark.parametrize(
    ("wanted", "strict", "ready", "reason"),
    [
        ([], False, True, ""),
        ([], True, True, ""),
        ([GOOD], False, True, ""),
        ([GOOD, BAD], False, True, ""),
        ([GOOD, BAD], True, False, "not serving: bad"),
        ([BAD], False, False, "no model can serve"),
        ([GOOD, NEW], False, False, "still loading: new"),
        ([GOOD, NEW], True, False, "still loading: new"),
    ],
)
def test_one_bad_model_is_not_ready_itself_and_no_more(
    wanted: Sequence[ModelReadiness], strict: bool, ready: bool, reason: str
) -> None:
    assert server_readiness(front=True, draining=False, wanted=wanted, strict=strict) == ServerReadiness(ready, reason)


@pytest.mark.parametrize(
    ("wanted", "strict", "reason"),
    [
        ([GOOD, NEW], False, ""),
        ([GOOD, BAD, NEW], False, ""),
        ([GOOD, NEW], True, "still loading: new"),
        ([BAD, NEW], False, "still loading: new"),
    ],
)
def test_after_the_start_up_grace_one_stuck_load_holds_nothing_back(
    wanted: Sequence[ModelReadiness], strict: bool, reason: str
) -> None:
    found = server_readiness(front=True, draining=False, wanted=wanted, strict=strict, is_grace_over=True)
    assert found == ServerReadiness(not reason, reason)


def test_a_draining_server_is_not_ready_whatever_serves() -> None:
    assert not server_readiness(front=True, draining=True, wanted=[GOOD], strict=False).ready


def test_without_a_front_nothing_is_ready() -> None:
    assert (
        server_readiness(front=False, draining=False, wanted=[GOOD], strict=False).reason
        == "the gateways are not up yet"
    )


def test_a_reason_names_at_most_five_models() -> None:
    many = [ModelReadiness(f"m{number}", serving=False, has_outcome=False) for number in range(9)]
    assert server_readiness(front=True, draining=False, wanted=many, strict=False).reason == (
        "still loading: m0, m1, m2, m3, m4 and 4 more"
    )


def test_not_ready_always_has_a_reason_and_strict_is_never_laxer() -> None:
    for count in range(4):
        for wanted in itertools.product([GOOD, BAD, NEW], repeat=count):
            lax = server_readiness(front=True, draining=False, wanted=wanted, strict=False)
            strict = server_readiness(front=True, draining=False, wanted=wanted, strict=True)
            assert lax.ready or lax.reason
            assert lax.ready or not strict.ready
