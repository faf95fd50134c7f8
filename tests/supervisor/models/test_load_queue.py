from __future__ import annotations

import random

from mmsup.supervisor.models.load_queue import LoadCandidate, load_order, next_loads


def test_at_most_the_limit_loads_at_a_time_in_the_order_of_models() -> None:
    waiting = [
        LoadCandidate(9, 0, has_served=False),
        LoadCandidate(1, 2, has_served=False),
        LoadCandidate(5, 1, has_served=False),
    ]
    assert next_loads(waiting, [], 2) == [9, 5]
    assert next_loads(waiting, [False], 2) == [9]
    assert next_loads(waiting, [False, False], 2) == []


def test_one_that_may_not_start_yet_takes_no_slot_and_nobody_is_asked_for_whom_there_is_none() -> None:
    waiting = [LoadCandidate(number, number, has_served=False) for number in range(5)]
    asked: list[int] = []

    def may_start(number: int) -> bool:
        asked.append(number)
        return number != 0

    assert next_loads(waiting, [False], 2, may_start) == [1]
    assert asked == [0, 1]


def test_an_instance_that_has_served_does_not_wait_behind_first_loads_that_hang() -> None:
    assert next_loads([LoadCandidate(3, 5, has_served=True)], [False, False], 2) == [3]


def test_many_instances_that_have_served_are_staggered_too() -> None:
    waiting = [LoadCandidate(number, number, has_served=True) for number in range(8)]
    assert next_loads(waiting, [], 2) == [0, 1]
    assert next_loads(waiting, [True], 2) == [0]


def test_no_queue_lets_more_than_the_limit_of_a_kind_load() -> None:
    for seed in range(500):
        rng = random.Random(seed)
        waiting = [LoadCandidate(number, rng.randrange(5), rng.random() < 0.5) for number in range(rng.randrange(20))]
        loading = [rng.random() < 0.5 for _ in range(rng.randrange(6))]
        limit = rng.randrange(1, 5)
        admitted = next_loads(waiting, loading, limit)
        assert len(set(admitted)) == len(admitted)
        for again in (True, False):
            came = sum(each.has_served is again for each in waiting if each.instance in admitted)
            assert came == 0 or came + loading.count(again) <= limit


def test_broken_models_do_not_keep_healthy_ones_waiting() -> None:
    broken = [LoadCandidate(number, number, has_served=False, is_retry=True) for number in range(8)]
    healthy = LoadCandidate(9, 20, has_served=False)
    assert next_loads([*broken, healthy], [], 2) == [9, 0]
    assert next_loads([*broken, healthy], [False], 2) == [9]


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
