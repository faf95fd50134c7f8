"""Which queue requests run next."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from mmsup.worker.batching.batcher import (
    DEADLINE_MARGIN_NS,
    MAX_BATCH_REQUESTS,
    BatchRule,
    batch_of_alike,
    next_batch,
)
from mmsup.worker.serving.pending_results import WorkerRequest
from request_double import FAR_NS, X, queued, signature


def request(rows: int = 1, deadline_ns: int = FAR_NS, **fields: Any) -> WorkerRequest:  # fields of a signature
    return queued(signature((replace(X, shape=(rows, 4)),), **fields), deadline_ns=deadline_ns)


MS = 1_000_000


def test_a_model_without_a_batch_axis_runs_one_request_at_a_time() -> None:
    queue = [request(), request()]
    assert next_batch(queue, 0, BatchRule(0)).requests == queue[:1]


def test_neighbours_run_together_up_to_the_batch_size() -> None:
    queue = [request(1), request(2), request(1), request(1)]
    assert next_batch(queue, 0, BatchRule(4)).requests == queue[:3]


def test_a_request_that_would_exceed_the_batch_waits_and_is_not_overtaken() -> None:
    queue = [request(3), request(2), request(1)]
    assert next_batch(queue, 0, BatchRule(4)).requests == queue[:1]


def test_a_request_larger_than_the_batch_size_runs_alone() -> None:
    queue = [request(9), request(1)]
    assert next_batch(queue, 0, BatchRule(4)).requests == queue[:1]


def test_a_run_takes_no_more_requests_than_the_status_page_remembers_twice() -> None:
    assert (
        len(next_batch([request() for _ in range(MAX_BATCH_REQUESTS + 5)], 0, BatchRule(1 << 20)).requests)
        == MAX_BATCH_REQUESTS
    )


def test_an_expired_request_does_not_run_and_does_not_split_a_batch() -> None:
    first, late, last = request(), request(deadline_ns=10), request()
    batch = next_batch([first, late, last], 10, BatchRule(8))
    assert batch.requests == [first, last]
    assert batch.expired == [late]


def test_no_request_runs_when_all_are_expired() -> None:
    queue = [request(deadline_ns=1), request(deadline_ns=2)]
    batch = next_batch(queue, 5, BatchRule(8))
    assert (batch.expired, batch.requests) == (queue, [])


def requests_and_wait(*requests: WorkerRequest, now_ns: int = MS, **rule: object) -> tuple[int, int]:
    """How many requests run now, and until when they wait otherwise."""
    fields = {"max_rows": 8, "max_delay_ns": 10 * MS, "expected_requests": 4, "run_ns": MS} | rule
    batch = next_batch(requests, now_ns, BatchRule(**fields))  # type: ignore[arg-type] # by the tests
    assert not (batch.requests and batch.wait_until_ns)
    return len(batch.requests), batch.wait_until_ns


def test_a_single_request_does_not_wait_when_no_more_came_together_lately() -> None:
    assert requests_and_wait(request(), expected_requests=1) == (1, 0)
    assert requests_and_wait(request(), expected_requests=0) == (1, 0)


def test_requests_wait_for_as_many_as_came_together_lately_and_no_longer_than_the_delay() -> None:
    assert requests_and_wait(request(), request(), request()) == (0, 10 * MS)
    assert requests_and_wait(request(), request(), request(), request()) == (4, 0)
    assert requests_and_wait(request(), request(), now_ns=10 * MS - 1) == (0, 10 * MS)
    assert requests_and_wait(request(), request(), now_ns=10 * MS) == (2, 0)


def test_without_a_delay_no_request_waits() -> None:
    assert requests_and_wait(request(), max_delay_ns=0) == (1, 0)


def test_a_full_batch_does_not_wait() -> None:
    assert requests_and_wait(request(5), request(3)) == (2, 0)
    assert requests_and_wait(request(5), request(4)) == (1, 0)
    assert requests_and_wait(request(), request(outputs=("y",))) == (1, 0)


def test_a_request_that_runs_alone_runs_at_once_and_none_joins_it() -> None:
    assert requests_and_wait(request(runs_alone=True)) == (1, 0)
    assert requests_and_wait(request(runs_alone=True), request(runs_alone=True), expected_requests=2) == (1, 0)
    assert requests_and_wait(request(), request(runs_alone=True)) == (1, 0)


def test_a_request_is_not_made_to_wait_past_the_point_where_its_deadline_would_fail() -> None:
    near = request(deadline_ns=6 * MS)
    until = 6 * MS - MS - DEADLINE_MARGIN_NS
    assert requests_and_wait(request(), near) == (0, until)
    assert requests_and_wait(request(), near, now_ns=until) == (2, 0)
    assert requests_and_wait(request(), near, request(deadline_ns=1), now_ns=MS) == (0, until)


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
def test_the_largest_preferred_size_that_is_queued_runs_at_once(rows: list[int], runs: int) -> None:
    requests = [request(each) for each in rows]
    assert requests_and_wait(*requests, preferred=(4, 8), max_rows=16, expected_requests=20)[0] == runs


def test_requests_that_reach_no_preferred_size_run_together_when_the_delay_is_over() -> None:
    assert requests_and_wait(request(3), request(3), preferred=(4, 8), max_rows=16, now_ns=10 * MS) == (2, 0)


def test_in_a_random_walk_every_request_leaves_once_in_order_and_no_batch_is_too_large() -> None:
    chance = random.Random(7)
    for _ in range(300):
        limit = chance.choice([0, 1, 4, 16])
        queue = [
            request(
                chance.randint(1, 5),
                deadline_ns=chance.choice([FAR_NS, 50]),
                outputs=chance.choice([(), ("y",)]),
            )
            for _ in range(chance.randint(0, 12))
        ]
        left, seen, ran = list(queue), [], []
        while left:
            batch = next_batch(left, chance.choice([10, 100]), BatchRule(limit))
            out = {id(each) for each in batch.requests + batch.expired}
            assert out == {id(each) for each in left[: len(out)]}, "the head of the queue, without gaps"
            assert (
                len(batch.requests) == 1
                or sum(each.signature.rows for each in batch.requests) <= limit
                or not batch.requests
            )
            seen += batch.requests + batch.expired
            ran += batch.requests
            left = left[len(out) :]
        assert {id(each) for each in seen} == {id(each) for each in queue}
        assert len(seen) == len(queue)
        assert [each.message.id for each in ran] == sorted(each.message.id for each in ran)


def test_alike_requests_run_at_once_exactly_where_any_batch_of_them_would() -> None:
    chance, answers = random.Random(11), set[int]()
    for _ in range(3000):
        rows, waiting = chance.choice((1, 1, 2, 3, 9)), chance.randint(1, 2 * MAX_BATCH_REQUESTS)
        if chance.random() < 0.7:
            waiting = chance.randint(1, 20)
        rule = BatchRule(
            chance.choice((2, 8, 16, 1 << 20)),
            chance.choice(((), (), (4,), (2, 8))),
            chance.choice((0, MS, 1 << 50)),
            chance.randint(0, 20),
            chance.choice((0, MS)),
        )
        one = queued(signature((replace(X, shape=(rows, 4)),)))
        size = batch_of_alike(waiting, rows, rule)
        answers.add(size)
        batch = next_batch([one] * waiting, 0, rule)
        if size:
            assert (len(batch.requests), batch.expired) == (size, []), (waiting, rows, rule)
        elif not rule.preferred:
            assert batch.wait_until_ns, (waiting, rows, rule)
    assert {0, 1, 2, 8, 16, MAX_BATCH_REQUESTS} <= answers
