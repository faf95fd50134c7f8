"""When what NVML shows of a worker ends it."""

from __future__ import annotations

import random

import pytest

from mmsup.supervisor.gpu.memory_excess import LOOKS, MIN_SLACK_BYTES, ExcessCounter, GpuBudget, is_exceeded
from mmsup.supervisor.gpu.memory_release import GpuUsage

GIB = 1 << 30
WORKER, OTHER = (1, 1), (2, 1)


def budget(held_bytes: int, source: str = "nvml", budget_bytes: int = 4 * GIB) -> GpuBudget:
    return GpuBudget(GpuUsage(held_bytes, source=source), budget_bytes)


@pytest.mark.parametrize(
    ("seen", "exceeded"),
    [
        (budget(0, ""), False),
        (budget(4 * GIB), False),
        (budget(4 * GIB + MIN_SLACK_BYTES), False),
        (budget(4 * GIB + MIN_SLACK_BYTES + 1), True),
        (budget(42 * GIB, budget_bytes=40 * GIB), False),
        (budget(42 * GIB + 1, budget_bytes=40 * GIB), True),
        (budget(9 * GIB, "self"), False),  # its allocator's word
    ],
)
def test_only_what_nvml_shows_beyond_the_slack_counts(seen: GpuBudget, exceeded: bool) -> None:
    assert is_exceeded(seen) is exceeded


def test_one_look_ends_nobody_and_the_second_in_a_row_does_once() -> None:
    counter = ExcessCounter()
    over, under = budget(6 * GIB), budget(GIB)
    assert counter.look({WORKER: over, OTHER: under}) == []
    assert counter.look({WORKER: under, OTHER: under}) == []
    assert counter.look({WORKER: over, OTHER: under}) == []
    assert counter.look({WORKER: over, OTHER: under}) == [WORKER]
    assert counter.look({WORKER: over, OTHER: under}) == []  # it is being ended
    assert counter.look({OTHER: over}) == []
    assert counter.look({OTHER: over, (1, 2): over}) == [OTHER]


def test_on_any_walk_those_end_that_were_over_at_each_of_the_last_looks_and_nobody_else() -> None:
    rng = random.Random(14)
    for _ in range(300):
        counter, history = ExcessCounter(), dict[tuple[int, int], int]()
        for _ in range(30):
            seen = {
                (number, 1): budget(rng.choice((GIB, 6 * GIB)), rng.choice(("nvml", "nvml", "self")))
                for number in range(4)
                if rng.random() < 0.9
            }
            history = {each: history.get(each, 0) + 1 for each, what in seen.items() if is_exceeded(what)}
            assert counter.look(seen) == [each for each, looks in history.items() if looks == LOOKS]
