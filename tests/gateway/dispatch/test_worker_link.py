"""When a worker exits every request in flight ends once, with whether it may have run."""

from __future__ import annotations

from mmsup.gateway.dispatch.in_flight import InFlightRequest, InFlightTable, RequestEvent, WorkerExited
from mmsup.ipc.messages.data import Infer


def add(table: InFlightTable, events: list[RequestEvent]) -> InFlightRequest:
    table.last_id += 1
    request = InFlightRequest(Infer(table.last_id, b"", 0, None, ()), [], events.append)
    table.requests[table.last_id] = request
    return request


def exited(events: list[RequestEvent]) -> tuple[bool, bool]:
    (event,) = events
    assert isinstance(event, WorkerExited)
    return event.started, event.alone


def test_each_request_gets_whether_its_own_id_had_started_in_whatever_order() -> None:
    table = InFlightTable()
    events: list[list[RequestEvent]] = [[], [], []]
    requests = [add(table, each) for each in events]
    table.close({requests[2].message.id, 7}, set())
    assert [exited(each) for each in events] == [(False, True), (False, True), (True, True)]
    assert not table.requests


def test_a_request_that_was_asked_a_larger_grant_ran_however_many_ran_since() -> None:
    table = InFlightTable()
    events: list[list[RequestEvent]] = [[], []]
    first, second = (add(table, each) for each in events)
    first.larger_grants = 1
    table.close({second.message.id}, set())
    assert [exited(each) for each in events] == [(True, False), (True, False)]


def test_a_notified_request_gets_nothing_more_and_still_counts_as_running() -> None:
    table = InFlightTable()
    events: list[list[RequestEvent]] = [[], []]
    left, stayed = (add(table, each) for each in events)
    left.notified = True
    table.close({left.message.id, stayed.message.id}, set())
    assert events[0] == []
    assert exited(events[1]) == (True, False)


def test_all_requests_in_flight_are_returned_notified_or_not() -> None:
    table = InFlightTable()
    requests = [add(table, []) for _ in range(3)]
    requests[0].notified = True
    lost = table.close({requests[1].message.id}, set())
    assert [(each.request, each.started) for each in lost] == [
        (requests[0], False),
        (requests[1], True),
        (requests[2], False),
    ]
    assert table.close(set(), set()) == []
