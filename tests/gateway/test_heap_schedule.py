"""Free memory goes back to the system while the gateway is idle, and only where there is enough of it."""

from __future__ import annotations

from mmsup.gateway.heap_schedule import GROWTH_BYTES, IDLE_HEARTBEATS, HeapSchedule


def due(schedule: HeapSchedule, heartbeats: int, private_bytes: int, open_requests: int = 0) -> list[int]:
    """The heartbeats at which memory is returned, counted from 1."""
    return [at for at in range(1, heartbeats + 1) if schedule.is_due(open_requests, lambda: private_bytes)]


def test_memory_is_returned_after_a_while_without_an_open_request() -> None:
    schedule = HeapSchedule()
    assert due(schedule, IDLE_HEARTBEATS - 1, GROWTH_BYTES) == []
    assert due(schedule, IDLE_HEARTBEATS, GROWTH_BYTES, open_requests=1) == []
    assert due(schedule, IDLE_HEARTBEATS, GROWTH_BYTES) == [IDLE_HEARTBEATS]


def test_what_is_still_used_after_a_return_is_not_looked_for_again() -> None:
    schedule = HeapSchedule()
    schedule.on_returned(10 * GROWTH_BYTES)
    assert due(schedule, 3 * IDLE_HEARTBEATS, 11 * GROWTH_BYTES - 1) == []
    assert due(schedule, 2 * IDLE_HEARTBEATS, 11 * GROWTH_BYTES) == [IDLE_HEARTBEATS, 2 * IDLE_HEARTBEATS]
