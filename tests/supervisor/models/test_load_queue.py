from __future__ import annotations

import random

import pytest

from mmsup.supervisor.models.load_queue import (
    SLOW_LIMIT,
    LoadCandidate,
    LoadKind,
    RunningLoad,
    load_kind,
    load_order,
    next_loads,
    slots_held,
)


def test_at_most_the_limit_loads_at_a_time_in_the_order_of_models() -> None:
    waiting = [
        LoadCandidate(9, 0, kind=LoadKind.FIRST),
        LoadCandidate(1, 2, kind=LoadKind.FIRST),
        LoadCandidate(5, 1, kind=LoadKind.FIRST),
    ]
    assert next_loads(waiting, [], 2) == [9, 5]
    assert next_loads(waiting, [LoadKind.FIRST], 2) == [9]
    assert next_loads(waiting, [LoadKind.FIRST, LoadKind.FIRST], 2) == []


def test_one_that_may_not_start_yet_takes_no_slot_and_nobody_is_asked_for_whom_there_is_none() -> None:
    waiting = [LoadCandidate(number, number, kind=LoadKind.FIRST) for number in range(5)]
    asked: list[int] = []

    def may_start(number: int) -> bool:
        asked.append(number)
        return number != 0

    assert next_loads(waiting, [LoadKind.FIRST], 2, may_start) == [1]
    assert asked == [0, 1]


def test_an_instance_that_has_served_does_not_wait_behind_first_loads_that_hang() -> None:
    assert next_loads([LoadCandidate(3, 5, kind=LoadKind.SERVED)], [LoadKind.FIRST, LoadKind.FIRST], 2) == [3]


def test_many_instances_that_have_served_are_staggered_too() -> None:
    waiting = [LoadCandidate(number, number, kind=LoadKind.SERVED) for number in range(8)]
    assert next_loads(waiting, [], 2) == [0, 1]
    assert next_loads(waiting, [LoadKind.SERVED], 2) == [0]


@pytest.mark.parametrize(
    ("has_served", "usual_s", "expected"),
    [
        (False, None, LoadKind.FIRST),
        (False, 0.1, LoadKind.FIRST),  # of other files
        (True, None, LoadKind.SERVED),
        (True, 0.1, LoadKind.QUICK),
        (True, 0.5, LoadKind.SERVED),
        (True, 9.0, LoadKind.SERVED),
    ],
)
def test_what_is_known_of_a_load_makes_its_kind(has_served: bool, usual_s: float | None, expected: LoadKind) -> None:
    assert load_kind(usual_s, has_served=has_served) is expected


def test_quick_loads_wait_for_no_slow_one_and_more_of_them_are_under_way() -> None:
    waiting = [LoadCandidate(number, number, LoadKind.QUICK) for number in range(9)]
    slow = LoadCandidate(9, 0, LoadKind.SERVED)
    assert next_loads([*waiting, slow], [LoadKind.SERVED] * 2, 2) == [0, 1, 2, 3]
    assert next_loads([*waiting, slow], [LoadKind.QUICK] * 3, 2) == [0, 9]


def test_no_queue_lets_more_than_the_limit_of_a_kind_load() -> None:
    for seed in range(500):
        rng = random.Random(seed)
        kinds = list(LoadKind)
        waiting = [LoadCandidate(number, rng.randrange(5), rng.choice(kinds)) for number in range(rng.randrange(20))]
        loading = [rng.choice(kinds) for _ in range(rng.randrange(6))]
        limit = rng.randrange(1, 5)
        admitted = next_loads(waiting, loading, limit)
        assert len(set(admitted)) == len(admitted)
        for kind in LoadKind:
            came = sum(each.kind is kind for each in waiting if each.instance in admitted)
            assert came == 0 or came + loading.count(kind) <= kind.slots(limit)
            left = [each for each in waiting if each.kind is kind and each.instance not in admitted]
            assert not left or came + loading.count(kind) >= kind.slots(limit), "a slot was left"


def test_broken_models_do_not_keep_healthy_ones_waiting() -> None:
    broken = [LoadCandidate(number, number, kind=LoadKind.FIRST, is_retry=True) for number in range(8)]
    healthy = LoadCandidate(9, 20, kind=LoadKind.FIRST)
    assert next_loads([*broken, healthy], [], 2) == [9, 0]
    assert next_loads([*broken, healthy], [LoadKind.FIRST], 2) == [9]


def test_loads_for_which_requests_wait_go_first_as_they_came_within_their_class_of_priority() -> None:
    came = [(2, 8, "a"), (2, 3, "z"), (2, None, "b"), (2, None, "a"), (1, None, "q"), (1, 9, "r"), (3, 1, "c")]
    ordered = sorted(came, key=lambda each: load_order(*each))
    assert ordered == [
        (1, 9, "r"),
        (1, None, "q"),
        (2, 3, "z"),
        (2, 8, "a"),
        (2, None, "a"),
        (2, None, "b"),
        (3, 1, "c"),
    ]


def test_a_load_for_which_a_request_waits_is_overtaken_by_later_ones_of_a_higher_class_alone() -> None:
    for seed in range(200):
        rng, came, started = random.Random(seed), list[tuple[int, int, str]](), list[tuple[int, int, str]]()
        for number in range(50):
            came.append((rng.randrange(3), number, rng.choice("abc")))
            if rng.random() < 0.7:
                first = min(came, key=lambda each: load_order(*each))
                came.remove(first)
                started.append(first)
                assert not any(each[0] == first[0] and each[1] < first[1] for each in came)
        assert started


def first_loads(*running_s: float) -> list[RunningLoad]:
    return [RunningLoad(kind=LoadKind.FIRST, running_s=each, usual_s=None) for each in running_s]


@pytest.mark.parametrize(
    ("running", "awaited", "free"),
    [
        (first_loads(), 0, 2),
        (first_loads(60), 0, 1),
        (first_loads(60, 60), 0, 0),
        (first_loads(60, 60), 1, 1),
        (first_loads(60, 60), 9, 2),
        (first_loads(60, 60, 1), 9, 1),
        (first_loads(60, 60, 1, 1), 9, 0),
        (first_loads(60, 9), 9, 1),
        (first_loads(9, 9), 9, 0),
        (first_loads(60, 9), 0, 0),
        (first_loads(*[60] * 7), 9, 1),
        (first_loads(*[60] * 8), 9, 0),
        (first_loads(*[60] * 8), 0, 0),
        ([RunningLoad(kind=LoadKind.SERVED, running_s=60, usual_s=None)] * 2, 9, 2),
    ],
)
def test_a_load_that_takes_very_long_holds_no_slot_while_requests_wait_for_others(
    running: list[RunningLoad], awaited: int, free: int
) -> None:
    waiting = [LoadCandidate(number, number, kind=LoadKind.FIRST) for number in range(9)]
    assert len(next_loads(waiting, slots_held(running, {LoadKind.FIRST: awaited}, 2), 2)) == free


@pytest.mark.parametrize(
    ("usual_s", "running_s", "is_slow"),
    [
        (None, 9.0, False),
        (None, 11.0, True),
        (0.1, 1.9, False),
        (0.1, 2.1, True),
        (5.0, 14.0, False),
        (5.0, 16.0, True),
        (60.0, 170.0, False),
    ],
)
def test_what_is_long_for_a_load_depends_on_how_long_it_took_before(
    usual_s: float | None, running_s: float, is_slow: bool
) -> None:
    assert RunningLoad(kind=LoadKind.FIRST, running_s=running_s, usual_s=usual_s).is_slow is is_slow


@pytest.mark.parametrize("seed", range(200))
def test_no_more_than_a_multiple_of_the_limit_is_ever_under_way_and_those_that_hang_keep_no_other_waiting_for_long(
    seed: int,
) -> None:
    rng, limit = random.Random(seed), 2
    running = list[RunningLoad]()
    hanging, most = rng.randrange(SLOW_LIMIT * limit), 0
    for number in range(hanging + 20):
        found: list[int] = []
        for _ in range(12):  # seconds
            running = [RunningLoad(each.kind, each.running_s + 1, None) for each in running]
            found = next_loads(
                [LoadCandidate(number, 0, kind=LoadKind.FIRST)], slots_held(running, {LoadKind.FIRST: 1}, limit), limit
            )
            if found:
                break
        assert found == [number]
        most = max(most, len(running) + 1)
        if number < hanging:
            running.append(RunningLoad(kind=LoadKind.FIRST, running_s=0.0, usual_s=None))
    assert most <= SLOW_LIMIT * limit
