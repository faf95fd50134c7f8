"""The server's choice of victims against LRU and Belady's optimum, on the streams of the density benchmark."""

from __future__ import annotations

import pytest
from eviction_policies import CHEAP_S, DEAR_S, POLICIES, Policy, replay, streams
from replacement import belady_hits, lru_hits

MODELS, FIT, COUNT, RATE = 60, 12, 4000, 20.0
ASKED = streams(MODELS, COUNT, 1)
EQUAL = [0.1] * MODELS
MIXED = [CHEAP_S if each % 4 else DEAR_S for each in range(MODELS)]


def made(name: str, load_s: list[float]) -> Policy:
    return POLICIES[name](load_s)


@pytest.mark.parametrize("stream", ASKED)
def test_no_policy_has_more_hits_than_the_optimum_and_lru_has_those_that_are_known(stream: str) -> None:
    asked = ASKED[stream]
    best = belady_hits(asked, FIT) / len(asked)
    for name in POLICIES:
        hits, _ = replay(asked, FIT, RATE, EQUAL, made(name, EQUAL))
        assert hits <= best
        assert name != "LRU" or hits == lru_hits(asked, FIT) / len(asked)


@pytest.mark.parametrize(("stream", "gain"), [("zipf", 0.05), ("sweeps", 0.05), ("moving", -0.03), ("uniform", -0.03)])
def test_the_choice_of_the_server_has_more_hits_than_lru_where_some_models_are_asked_more(
    stream: str, gain: float
) -> None:
    ours, lru = (replay(ASKED[stream], FIT, RATE, EQUAL, made(name, EQUAL))[0] for name in ("mmsup", "LRU"))
    assert ours >= lru + gain


@pytest.mark.parametrize("stream", ASKED)
def test_where_loads_differ_less_time_is_spent_on_them_than_with_lru(stream: str) -> None:
    ours, lru = (replay(ASKED[stream], FIT, RATE, MIXED, made(name, MIXED))[1] for name in ("mmsup", "LRU"))
    assert ours < 0.6 * lru
