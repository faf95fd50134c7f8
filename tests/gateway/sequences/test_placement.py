"""Where sequences are looked for: alike in all gateways, spread, and stable."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import pytest

from mmsup.gateway.sequences.placement import Places, ordered


@dataclass(frozen=True)
class Worker:
    worker_id: tuple[int, int]


WORKERS = [Worker((number, 1)) for number in (3, 4, 5)]


def test_the_order_depends_on_instances_and_sequence_alone() -> None:
    for sequence in (1, 2, "a", "1"):
        found = ordered(WORKERS, "m", sequence)
        assert ordered(reversed(WORKERS), "m", sequence) == found
        others = [Worker((each.worker_id[0], 9)) for each in WORKERS]
        assert [each.worker_id[0] for each in ordered(others, "m", sequence)] == [each.worker_id[0] for each in found]


def test_sequences_spread_over_all_workers() -> None:
    first = Counter(ordered(WORKERS, "m", number)[0] for number in range(3000))
    assert min(first.values()) > 800


def test_a_worker_that_goes_moves_only_its_own_sequences() -> None:
    for number in range(300):
        before = ordered(WORKERS, "m", number)
        assert ordered(WORKERS[:2], "m", number) == [each for each in before if each is not WORKERS[2]]


def test_as_many_places_are_remembered_as_the_limit_says_the_last_used_ones() -> None:
    places = Places(limit=2)
    places.put("a", (1, 1))
    places.put("b", (2, 1))
    places.put("a", (3, 1))
    places.put("c", (4, 1))
    assert (places.get("a"), places.get("b"), places.get("c")) == ((3, 1), None, (4, 1))
    places.drop("a")
    places.drop("a")
    assert len(places) == 1


def test_the_silence_of_a_sequence_counts_from_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    places = Places()
    places.put("a", (1, 1))
    now_s = 107.0
    assert (places.silence_s("a"), places.silence_s("b")) == (7.0, 0.0)
    places.put("a", (1, 1))
    assert places.silence_s("a") == 0.0
