from __future__ import annotations

from mmsup.ipc.messages.gateway_control import InFlight, LinkClosed
from mmsup.supervisor.postmortem.in_flight import MAX_WORKERS, InFlightAtExit


def ended(instance: int, *requests: InFlight) -> LinkClosed:
    return LinkClosed(instance, 1, len(requests), sum(each.begun for each in requests), requests)


def request(name: str, *, begun: bool = False, age_s: float = 1.0) -> InFlight:
    return InFlight(name, begun, abandoned=False, age_s=age_s)


def test_what_gateways_tell_is_added_up_and_those_that_had_begun_come_first() -> None:
    casualties = InFlightAtExit()
    casualties.add(0, ended(7, request("young"), request("old", age_s=3.0)))
    casualties.add(1, ended(7, request("ran", begun=True), request("")))
    loss = casualties.summary((7, 1), {0, 1})
    assert (loss.in_flight, loss.begun, loss.is_complete) == (4, 1, True)
    assert loss.ids() == ["ran", "old", "young"]


def test_a_loss_is_complete_when_every_gateway_that_lives_has_told() -> None:
    casualties = InFlightAtExit()
    assert casualties.summary((7, 1), set()).is_complete
    assert not casualties.summary((7, 1), {0, 1}).is_complete
    casualties.add(0, ended(7))
    assert not casualties.summary((7, 1), {0, 1}).is_complete
    assert casualties.summary((7, 1), {0}).is_complete
    assert not casualties.summary((7, 2), {0}).is_complete


def test_a_gateway_that_tells_twice_counts_once() -> None:
    casualties = InFlightAtExit()
    for _ in range(2):
        casualties.add(0, ended(7, request("a")))
    assert casualties.summary((7, 1), {0}).in_flight == 1


def test_lives_of_long_ago_are_forgotten() -> None:
    casualties = InFlightAtExit()
    for instance in range(MAX_WORKERS + 1):
        casualties.add(0, ended(instance, request("a")))
    assert casualties.summary((0, 1), {0}).in_flight == 0
    assert casualties.summary((1, 1), {0}).in_flight == 1
