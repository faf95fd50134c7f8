"""Which waiting requests run next."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from mmsup.worker.batching.batcher import DEADLINE_MARGIN_NS, MAX_BATCH_REQUESTS, BatchRule, QueuedRequest, next_batch
from work_double import FAR_NS, X, form
from work_double import work as made


def work(rows: int = 1, deadline_ns: int = FAR_NS, **words: Any) -> QueuedRequest:  # words: of a Form, by the tests
    return made(form((replace(X, shape=(rows, 4)),), **words), deadline_ns=deadline_ns)


MS = 1_000_000


def test_a_model_without_a_batch_axis_runs_one_request_at_a_time() -> None:
    waiting = [work(), work()]
    assert next_batch(waiting, 0, BatchRule(0)).requests == waiting[:1]


def test_neighbours_run_together_up_to_the_batch_size() -> None:
    waiting = [work(1), work(2), work(1), work(1)]
    assert next_batch(waiting, 0, BatchRule(4)).requests == waiting[:3]


def test_a_request_that_would_exceed_the_batch_waits_and_nobody_overtakes_it() -> None:
    waiting = [work(3), work(2), work(1)]
    assert next_batch(waiting, 0, BatchRule(4)).requests == waiting[:1]


def test_a_request_larger_than_the_batch_size_runs_alone() -> None:
    waiting = [work(9), work(1)]
    assert next_batch(waiting, 0, BatchRule(4)).requests == waiting[:1]


def test_a_run_takes_no_more_requests_than_the_status_page_remembers_twice() -> None:
    assert (
        len(next_batch([work() for _ in range(MAX_BATCH_REQUESTS + 5)], 0, BatchRule(1 << 20)).requests)
        == MAX_BATCH_REQUESTS
    )


def test_what_is_past_its_deadline_does_not_run_and_does_not_part_a_batch() -> None:
    first, late, last = work(), work(deadline_ns=10), work()
    taken = next_batch([first, late, last], 10, BatchRule(8))
    assert taken.requests == [first, last]
    assert taken.expired == [late]


def test_nothing_runs_when_all_is_late() -> None:
    waiting = [work(deadline_ns=1), work(deadline_ns=2)]
    taken = next_batch(waiting, 5, BatchRule(8))
    assert (taken.expired, taken.requests) == (waiting, [])


def wait(*works: QueuedRequest, now_ns: int = MS, **rule: object) -> tuple[int, int]:
    """How many requests run now, and until when they wait otherwise."""
    fields = {"max_rows": 8, "max_delay_ns": 10 * MS, "expected_requests": 4, "run_ns": MS} | rule
    taken = next_batch(works, now_ns, BatchRule(**fields))  # type: ignore[arg-type] # by the tests
    assert not (taken.requests and taken.wait_until_ns)
    return len(taken.requests), taken.wait_until_ns


def test_a_lone_request_does_not_wait_when_no_more_were_here_together_of_late() -> None:
    assert wait(work(), expected_requests=1) == (1, 0)
    assert wait(work(), expected_requests=0) == (1, 0)


def test_requests_wait_for_as_many_as_were_here_together_and_no_longer_than_the_delay() -> None:
    assert wait(work(), work(), work()) == (0, 10 * MS)
    assert wait(work(), work(), work(), work()) == (4, 0)
    assert wait(work(), work(), now_ns=10 * MS - 1) == (0, 10 * MS)
    assert wait(work(), work(), now_ns=10 * MS) == (2, 0)


def test_without_a_delay_nobody_waits() -> None:
    assert wait(work(), max_delay_ns=0) == (1, 0)


def test_a_full_batch_does_not_wait() -> None:
    assert wait(work(5), work(3)) == (2, 0)
    assert wait(work(5), work(4)) == (1, 0)
    assert wait(work(), work(outputs=("y",))) == (1, 0)


def test_what_runs_alone_runs_at_once_and_nobody_joins_it() -> None:
    assert wait(work(alone=True)) == (1, 0)
    assert wait(work(alone=True), work(alone=True), expected_requests=2) == (1, 0)
    assert wait(work(), work(alone=True)) == (1, 0)


def test_a_request_is_not_made_to_wait_past_the_point_where_its_deadline_would_fail() -> None:
    near = work(deadline_ns=6 * MS)
    until = 6 * MS - MS - DEADLINE_MARGIN_NS
    assert wait(work(), near) == (0, until)
    assert wait(work(), near, now_ns=until) == (2, 0)
    assert wait(work(), near, work(deadline_ns=1), now_ns=MS) == (0, until)


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ([1, 1, 1, 1], 4),
        ([1] * 5, 4),
        ([1, 2, 1, 3], 3),
        ([1] * 8, 8),
        ([1] * 9, 8),
        ([3, 3], 0),
        ([1, 2], 0),
    ],
)
def test_a_preferred_size_runs_at_once_and_the_largest_that_is_there(rows: list[int], runs: int) -> None:
    works = [work(each) for each in rows]
    assert wait(*works, preferred=(4, 8), max_rows=16, expected_requests=20)[0] == runs


def test_what_reaches_no_preferred_size_runs_whole_when_its_time_is_up() -> None:
    assert wait(work(3), work(3), preferred=(4, 8), max_rows=16, now_ns=10 * MS) == (2, 0)


def test_in_a_random_walk_every_request_leaves_once_in_order_and_no_batch_is_too_large() -> None:
    chance = random.Random(7)
    for _ in range(300):
        limit = chance.choice([0, 1, 4, 16])
        waiting = [
            work(
                chance.randint(1, 5),
                deadline_ns=chance.choice([FAR_NS, 50]),
                outputs=chance.choice([(), ("y",)]),
            )
            for _ in range(chance.randint(0, 12))
        ]
        left, seen, ran = list(waiting), [], []
        while left:
            taken = next_batch(left, chance.choice([10, 100]), BatchRule(limit))
            out = {id(each) for each in taken.requests + taken.expired}
            assert out == {id(each) for each in left[: len(out)]}, "the head of the queue, without gaps"
            assert (
                len(taken.requests) == 1
                or sum(each.kind.rows for each in taken.requests) <= limit
                or not taken.requests
            )
            seen += taken.requests + taken.expired
            ran += taken.requests
            left = left[len(out) :]
        assert {id(each) for each in seen} == {id(each) for each in waiting}
        assert len(seen) == len(waiting)
        assert [each.request.id for each in ran] == sorted(each.request.id for each in ran)
