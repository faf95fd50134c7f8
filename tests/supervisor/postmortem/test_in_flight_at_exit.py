from __future__ import annotations

from mmsup.ipc.messages.gateway_control import InFlight, LinkClosed
from mmsup.supervisor.postmortem.in_flight import MAX_WORKERS, InFlightAtExit


def report(instance: int, *requests: InFlight) -> LinkClosed:
    return LinkClosed(instance, 1, len(requests), sum(each.begun for each in requests), requests)


def request(name: str, *, begun: bool = False, age_s: float = 1.0) -> InFlight:
    return InFlight(name, begun, abandoned=False, age_s=age_s)


def test_reports_are_added_up_and_begun_requests_come_first() -> None:
    in_flight = InFlightAtExit()
    in_flight.add(0, report(7, request("young"), request("old", age_s=3.0)))
    in_flight.add(1, report(7, request("ran", begun=True), request("")))
    summary = in_flight.summary((7, 1), {0, 1})
    assert (summary.in_flight, summary.begun, summary.is_complete) == (4, 1, True)
    assert summary.ids() == ["ran", "old", "young"]


def test_a_summary_is_complete_when_every_live_gateway_has_reported() -> None:
    in_flight = InFlightAtExit()
    assert in_flight.summary((7, 1), set()).is_complete
    assert not in_flight.summary((7, 1), {0, 1}).is_complete
    in_flight.add(0, report(7))
    assert not in_flight.summary((7, 1), {0, 1}).is_complete
    assert in_flight.summary((7, 1), {0}).is_complete
    assert not in_flight.summary((7, 2), {0}).is_complete


def test_a_gateway_that_reports_twice_counts_once() -> None:
    in_flight = InFlightAtExit()
    for _ in range(2):
        in_flight.add(0, report(7, request("a")))
    assert in_flight.summary((7, 1), {0}).in_flight == 1


def test_old_workers_are_forgotten() -> None:
    in_flight = InFlightAtExit()
    for instance in range(MAX_WORKERS + 1):
        in_flight.add(0, report(instance, request("a")))
    assert in_flight.summary((0, 1), {0}).in_flight == 0
    assert in_flight.summary((1, 1), {0}).in_flight == 1
