"""Who goes to sleep when memory is needed: least value first, by rules that hold for every choice."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from mmsup.supervisor.capacity.moves import SleepTier
from mmsup.supervisor.capacity.victims import (
    CLASS_S,
    MAX_RESIDENCE_S,
    MIN_RESIDENCE_S,
    UNSERVED_S,
    Candidate,
    as_one,
    choose,
    choose_with_tiers,
    kept_s,
    may_go,
    next_due_s,
)

PLAIN = Candidate("plain", 50, held_bytes=100, idle_s=10.0, use_rate=0.5, return_s=1.0)


def one(name: str, **facts: float | bool) -> Candidate:
    return replace(PLAIN, name=name, **facts)  # type: ignore[arg-type]  # ints and floats by name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (one("rare", use_rate=0.1), one("often", use_rate=0.2)),
        (one("cheap", return_s=0.1), one("dear", return_s=2.0)),
        (one("large", held_bytes=300), one("small", held_bytes=100)),
        (one("idle", use_rate=0.0, idle_s=20.0), one("less", use_rate=0.0, idle_s=10.0)),
        (one("low", priority=60, use_rate=0.9), one("high", use_rate=0.1)),
        (one("idle high", priority=40, idle_s=CLASS_S, use_rate=0.1), one("plain")),
        (one("idle", use_rate=0.5), one("long", use_rate=0.1, running_s=9.0)),
        (one("a"), one("b")),
        (one("in host memory", is_offloaded=True, use_rate=0.9), one("awake", use_rate=0.1)),
    ],
)
def test_who_goes_first(first: Candidate, second: Candidate) -> None:
    assert choose([second, first], 1, 50) == choose([first, second], 1, 50) == [first]


@pytest.mark.parametrize(
    ("candidate", "may"),
    [
        (one("same class"), True),
        (one("lower", priority=90), True),
        (one("higher, in use", priority=10, idle_s=CLASS_S - 1), False),
        (one("higher, idle", priority=10, idle_s=CLASS_S), True),
        (one("holds nothing", held_bytes=0), False),
        (one("higher, in host memory", priority=10, idle_s=1.0, is_offloaded=True), True),
    ],
)
def test_who_may_go_at_all(candidate: Candidate, *, may: bool) -> None:
    assert may_go(candidate, 50) is may
    assert bool(choose([candidate], 1, 50)) is may


@pytest.mark.parametrize(
    ("ready_for_s", "return_s", "has_served", "expected"),
    [
        (0.0, 0.02, True, MIN_RESIDENCE_S),
        (MIN_RESIDENCE_S, 0.02, True, 0.0),
        (1.0, 3.0, True, 2.0),
        (0.0, 1000.0, True, MAX_RESIDENCE_S),
        (1.0, 0.02, False, UNSERVED_S - 1),
        (UNSERVED_S, 0.02, False, 0.0),
        (10.0, 20.0, False, 10.0),
    ],
)
def test_how_long_a_model_is_kept_after_its_load(
    ready_for_s: float, return_s: float, *, has_served: bool, expected: float
) -> None:
    assert kept_s(ready_for_s, return_s, has_served=has_served) == pytest.approx(expected)


def test_those_that_are_kept_do_not_go_and_are_waited_for() -> None:
    young, loading, old = one("young", kept_s=0.3), one("loading", kept_s=math.inf), one("old", kept_s=0.0)
    assert choose([young, loading, old], 1000, 50) == [old]
    assert next_due_s([young, loading, old], 50) == 0.3
    assert next_due_s([loading, old], 50) == math.inf


def test_one_large_model_goes_instead_of_many_small_ones_that_it_makes_superfluous() -> None:
    small = [one(f"s{number}", held_bytes=10, use_rate=0.01) for number in range(5)]
    large = one("large", held_bytes=500, use_rate=0.9)
    assert choose([*small, large], 450, 50) == [large]
    assert len(choose([*small, large], 30, 50)) == 3


def random_candidate(rng: random.Random, number: int) -> Candidate:
    return Candidate(
        f"m{number}",
        rng.choice([10, 50, 50, 50, 90]),
        rng.choice([0, rng.randrange(1, 1000)]),
        rng.choice([0.0, rng.uniform(0, 200)]),
        rng.choice([0.0, rng.random()]),
        rng.choice([0.0, rng.uniform(0, 30)]),
        rng.choice([0.0, 0.0, 0.0, rng.uniform(0, 5), math.inf]),
        rng.choice([0.0, 0.0, rng.uniform(0, 20)]),
    )


def test_every_choice_is_enough_if_it_can_be_and_holds_nobody_in_vain() -> None:
    rng = random.Random(7)
    for _ in range(3000):
        found = [random_candidate(rng, number) for number in range(rng.randrange(12))]
        missing, priority = rng.randrange(3000), rng.choice([10, 50, 90])
        chosen = choose(found, missing, priority)
        able = [each for each in found if each.kept_s <= 0 and may_go(each, priority)]
        assert all(each in able for each in chosen)
        total = sum(each.held_bytes for each in chosen)
        assert total >= missing or len(chosen) == len(able)
        for each in chosen:
            assert total - each.held_bytes < missing, "it need not have gone"
        rng.shuffle(found)
        assert choose(found, missing, priority) == chosen, "whatever the order in which they are named"


def test_a_model_that_is_used_more_is_never_more_likely_to_go() -> None:
    rng = random.Random(8)
    for _ in range(1000):
        found = [random_candidate(rng, number) for number in range(6)]
        missing = rng.randrange(1, 1500)
        for number, each in enumerate(found):
            was_chosen = each in choose(found, missing, 50)
            dearer = replace(each, use_rate=each.use_rate + 0.5, return_s=each.return_s + 1)
            others = [*found[:number], dearer, *found[number + 1 :]]
            now = choose(others, missing, 50)
            # A victim that makes others superfluous may come in; it alone is then enough.
            assert was_chosen or dearer not in now or len(now) < len(choose(found, missing, 50)) + 1


def test_models_that_share_a_worker_are_as_valuable_as_the_most_valuable_of_them() -> None:
    found = as_one([
        one("b", priority=40, held_bytes=30, idle_s=9.0, use_rate=0.1, return_s=3.0, kept_s=0.5),
        one("a", priority=50, held_bytes=50, idle_s=2.0, use_rate=0.4, return_s=1.0, kept_s=0.0, running_s=2.0),
    ])  # fmt: skip
    assert found == Candidate("a", 40, 80, 2.0, 0.4, 3.0, 0.5, 2.0, ("b",))


def movable(name: str, gives: int, takes: int = 0, **facts: float) -> Candidate:
    return replace(one(name, **facts), offload_bytes=gives, host_growth_bytes=takes)


ROOM = 100


@pytest.mark.parametrize(
    ("candidates", "missing", "expected"),
    [
        ([movable("a", 90, 90)], 50, [("a", SleepTier.HOST_MEMORY)]),
        ([movable("a", 90, 90)], 95, [("a", SleepTier.UNLOADED)]),
        ([movable("a", 90, 101)], 50, [("a", SleepTier.UNLOADED)]),
        ([movable("a", 60, 60), movable("b", 60, 60)], 100, [("a", SleepTier.UNLOADED)]),
        (
            [movable("a", 60, 40), movable("b", 60, 40)],
            100,
            [("a", SleepTier.HOST_MEMORY), ("b", SleepTier.HOST_MEMORY)],
        ),
        ([one("a"), movable("b", 90, 90, use_rate=0.9)], 50, [("a", SleepTier.UNLOADED)]),
        ([one("a", is_offloaded=True), movable("b", 90, 90)], 50, [("b", SleepTier.HOST_MEMORY)]),
        ([one("a", is_offloaded=True, held_bytes=20), movable("b", 90, 90)], 95, [("b", SleepTier.UNLOADED)]),
        ([one("a", is_offloaded=True)], 50, [("a", SleepTier.UNLOADED)]),
        ([movable("a", 90, kept_s=1.0)], 50, []),
    ],
)
def test_models_go_to_host_memory_where_that_is_enough_and_are_unloaded_where_not(
    candidates: list[Candidate], missing: int, expected: list[tuple[str, SleepTier]]
) -> None:
    assert [(each.name, each.tier) for each in choose_with_tiers(candidates, missing, 50, ROOM)] == expected


def test_walks_whatever_goes_gives_as_much_as_unloading_could_and_the_host_holds_what_moves() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        candidates = [
            replace(
                movable(
                    f"m{number}", rng.choice((0, rng.randrange(1, 100))), rng.randrange(120), use_rate=rng.random()
                ),
                is_offloaded=rng.random() < 0.3,
                kept_s=rng.choice((0.0, 0.0, 1.0)),
            )
            for number in range(rng.randrange(6))
        ]
        missing = rng.randrange(1, 400)
        gone = choose_with_tiers(candidates, missing, 50, ROOM)
        plain = choose(candidates, missing, 50)
        assert sum(each.held_bytes for each in gone) >= min(missing, sum(each.held_bytes for each in plain))
        moved = [each for each in gone if each.tier is SleepTier.HOST_MEMORY]
        assert sum(each.host_growth_bytes for each in moved) <= ROOM
        assert not any(each.is_offloaded for each in moved)
