"""A stated latency is held, and costs no more throughput than it must. By simulation."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mmsup.ipc.specs import Batching, ModelSpec
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.batching.batcher import next_batch
from mmsup.worker.batching.latency_objective import LatencyObjective
from mmsup.worker.serving.pending_results import WorkerRequest
from request_double import queued

MS = 1_000_000
Took = Callable[[int], int]
"""How long a run of so many rows takes."""


def simulate(spec: ModelSpec, callers: int, think_ns: int, took: Took) -> tuple[list[int], int]:
    """Queue and run time of each request, from the moment at which sizes are settled, and the time that it all took:
    `callers` who each send again `think_ns` after their answer."""
    chance = random.Random(3)
    policy = BatchPolicy(spec, spec.max_batch_size)
    now, began = 0, 0
    coming = [chance.randrange(1, think_ns) for _ in range(callers)]
    queue: list[WorkerRequest] = []
    times: list[int] = []
    for run in range(2500):
        batch: list[WorkerRequest] = []
        while not batch:
            queue += [queued(arrived_ns=at) for at in sorted(coming) if at <= now]
            coming = [at for at in coming if at > now]
            chosen = next_batch(queue, now, policy.rule())
            batch = chosen.requests
            if not batch:
                now = min([at for at in (chosen.wait_until_ns, *coming) if at > now])
        del queue[: len(batch)]
        ns = took(len(batch))
        now += ns
        arrived = [at for at in coming if at <= now]
        policy.on_run(len(batch), ns)
        policy.concurrency.record(len(batch) + len(queue) + len(arrived))
        coming += [now + chance.randrange(think_ns // 2, think_ns) for _ in batch]
        if run == 800:
            began = now
        elif run > 800:
            times += [now - each.arrived_ns for each in batch]
    return times, now - began


def linear(first_ns: int, more_ns: int, noise: float = 0.05) -> Took:
    chance = random.Random(1)
    return lambda rows: int((first_ns + more_ns * (rows - 1)) * chance.uniform(1, 1 + noise))


def spec(objective_ms: float, max_batch: int = 64) -> ModelSpec:
    batching = Batching(objective_s=objective_ms / 1e3)
    return ModelSpec("m", "1", "/m", "a", "ort", "p", max_batch, batching=batching)


@pytest.mark.parametrize(("objective_ms", "callers"), [(3.0, 16), (5.0, 32), (10.0, 24), (10.0, 4), (4.0, 1)])
def test_p99_of_queue_and_run_stays_below_the_objective(objective_ms: float, callers: int) -> None:
    times, _ = simulate(spec(objective_ms), callers, MS, linear(MS, MS // 20))
    assert sorted(times)[len(times) * 99 // 100] <= objective_ms * MS


def test_a_wider_objective_gives_more_throughput() -> None:
    rates = []
    for objective_ms in (3.0, 6.0):
        times, span = simulate(spec(objective_ms), 40, MS, linear(MS, MS // 20))
        rates.append(len(times) / span)
    assert rates[1] > rates[0] * 1.1


def test_a_single_caller_is_not_delayed_by_an_objective() -> None:
    times, _ = simulate(spec(50.0), 1, MS, linear(MS, 0, 0.0))
    assert max(times) == MS


def test_the_size_doubles_until_a_run_was_too_slow_and_then_grows_by_one() -> None:
    objective = LatencyObjective(4 * MS, 64)
    for size in (1, 2, 4, 8):
        assert objective.rows == size
        for _ in range(16):
            objective.on_run(size, MS)
    objective.on_run(16, 3 * MS)
    assert objective.rows == 16, "one of a hundred may be too slow"
    objective.on_run(16, 3 * MS)
    assert objective.rows == 12
    for _ in range(16):
        objective.on_run(12, MS)
    assert objective.rows == 13


def test_runs_that_are_not_full_change_nothing_and_a_size_near_its_limit_stays() -> None:
    objective = LatencyObjective(4 * MS, 64)
    for _ in range(16):
        objective.on_run(1, MS)
    for _ in range(100):
        objective.on_run(1, MS)
    assert objective.rows == 2
    for _ in range(100):
        objective.on_run(2, 2 * MS - 1)
    assert objective.rows == 2


def test_the_size_never_leaves_its_bounds() -> None:
    objective = LatencyObjective(2 * MS, 4)
    chance = random.Random(2)
    for _ in range(5000):
        objective.on_run(objective.rows, chance.choice([MS // 2, MS // 2, MS // 2, 2 * MS]))
        assert 1 <= objective.rows <= 4
