"""The oldest garbage is collected in a pause, and a load without one does not let it grow for ever."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

from mmsup.gateway.gc_schedule import DUE_COLLECTIONS, IDLE_HEARTBEATS, OLDEST_GENERATION_THRESHOLD, GcSchedule


@pytest.mark.parametrize(
    ("looks", "due"),
    [
        ([(0, DUE_COLLECTIONS)], [False]),
        ([(0, DUE_COLLECTIONS)] * IDLE_HEARTBEATS, [False, True]),
        ([(0, DUE_COLLECTIONS - 1)] * 5, [False] * 5),
        ([(1, 900)] * 5, [False] * 5),
        ([(0, 900), (1, 900), (0, 900), (0, 900)], [False, False, False, True]),
        ([(0, 3), (0, 9), (0, 10), (0, 0), (0, 0)], [False, False, True, False, False]),
    ],
)
def test_it_is_due_in_a_pause_if_there_is_enough_to_look_for(looks: Sequence[tuple[int, int]], due: list[bool]) -> None:
    garbage = GcSchedule()
    assert [garbage.is_due(*look) for look in looks] == due


def test_by_itself_the_collector_comes_later_than_in_any_pause_and_still_comes() -> None:
    assert gc.get_threshold()[2] <= DUE_COLLECTIONS < OLDEST_GENERATION_THRESHOLD
