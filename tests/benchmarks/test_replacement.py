"""Hits of replacement policies on sequences whose optimum is known, and on random ones against trying every victim."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from replacement import belady_hits, lru_hits, random_hits

POLICIES = [lru_hits, belady_hits, random_hits]


@pytest.mark.parametrize(
    ("models", "capacity", "lru", "belady"),
    [
        ([], 2, 0, 0),
        ([1], 1, 0, 0),
        ([1, 1, 1], 1, 2, 2),
        ([1, 2, 1, 2], 1, 0, 0),
        ([1, 2, 1, 2], 2, 2, 2),
        ([1, 2, 3, 1, 2, 3], 2, 0, 2),  # a loop that does not fit is the worst of LRU
        ([1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5], 3, 2, 5),  # Belady's own example: 10 and 7 faults
        ([7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1], 3, 8, 11),  # of the textbooks: 12 and 9 faults
    ],
)
def test_hits_of_known_sequences(models: list[int], capacity: int, lru: int, belady: int) -> None:
    assert lru_hits(models, capacity) == lru
    assert belady_hits(models, capacity) == belady


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_before_the_count_fill_the_memory(policy: Callable[..., int]) -> None:
    assert policy([1, 2, 1, 2], 2, 2) == 2
    assert policy([1, 2, 3, 3], 2, 3) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_all_but_the_first_requests_hit_if_everything_fits(policy: Callable[..., int]) -> None:
    assert policy([1, 2, 3, 1, 2, 3, 3], 3) == 4


def best(models: Sequence[int], capacity: int) -> int:
    """The most hits, by trying every victim."""

    @cache
    def hits(place: int, loaded: frozenset[int]) -> int:
        if place == len(models):
            return 0
        model = models[place]
        if model in loaded:
            return 1 + hits(place + 1, loaded)
        if len(loaded) < capacity:
            return hits(place + 1, loaded | {model})
        return max(hits(place + 1, loaded - {victim} | {model}) for victim in loaded)

    return hits(0, frozenset())


def test_nothing_beats_belady_and_belady_is_reached() -> None:
    draw = random.Random(4)
    for _ in range(150):
        models = [draw.randrange(6) for _ in range(draw.randrange(1, 14))]
        capacity = draw.randrange(1, 5)
        most = best(models, capacity)
        assert belady_hits(models, capacity) == most, (models, capacity)
        assert lru_hits(models, capacity) <= most
        assert random_hits(models, capacity) <= most


def test_hits_by_chance_on_a_uniform_sequence_are_the_share_that_fits() -> None:
    draw = random.Random(5)
    models = [draw.randrange(100) for _ in range(20_000)]
    assert random_hits(models, 20, 1000) / 19_000 == pytest.approx(0.2, abs=0.02)
    assert lru_hits(models, 20, 1000) / 19_000 == pytest.approx(0.2, abs=0.02)
