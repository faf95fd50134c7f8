"""The oldest garbage is collected while the gateway is idle, and under a constant load at last too."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

from mmsup.gateway.gc_schedule import DUE_COLLECTIONS, IDLE_HEARTBEATS, OLDEST_GENERATION_THRESHOLD, GcSchedule


@pytest.mark.parametrize(
    ("heartbeats", "due"),
    [
        ([(0, DUE_COLLECTIONS)], [False]),
        ([(0, DUE_COLLECTIONS)] * IDLE_HEARTBEATS, [False, True]),
        ([(0, DUE_COLLECTIONS - 1)] * 5, [False] * 5),
        ([(1, 900)] * 5, [False] * 5),
        ([(0, 900), (1, 900), (0, 900), (0, 900)], [False, False, False, True]),
        ([(0, 3), (0, 9), (0, 10), (0, 0), (0, 0)], [False, False, True, False, False]),
    ],
)
def test_a_collection_is_due_when_idle_if_there_is_enough_to_collect(
    heartbeats: Sequence[tuple[int, int]], due: list[bool]
) -> None:
    schedule = GcSchedule()
    assert [schedule.is_due(*heartbeat) for heartbeat in heartbeats] == due


def test_without_an_idle_moment_the_interpreter_collects_later_but_still_does() -> None:
    assert gc.get_threshold()[2] <= DUE_COLLECTIONS < OLDEST_GENERATION_THRESHOLD
