from __future__ import annotations

from mmsup.ipc.messages.gateway_control import Ended, InFlight
from mmsup.supervisor.postmortem.in_flight import LIVES_KEPT, Casualties


def ended(instance: int, *requests: InFlight) -> Ended:
    return Ended(instance, 1, len(requests), sum(each.begun for each in requests), requests)


def request(name: str, *, begun: bool = False, age_s: float = 1.0) -> InFlight:
    return InFlight(name, begun, abandoned=False, age_s=age_s)


def test_what_gateways_tell_is_added_up_and_those_that_had_begun_come_first() -> None:
    casualties = Casualties()
    casualties.told(0, ended(7, request("young"), request("old", age_s=3.0)))
    casualties.told(1, ended(7, request("ran", begun=True), request("")))
    loss = casualties.loss((7, 1), {0, 1})
    assert (loss.in_flight, loss.begun, loss.is_complete) == (4, 1, True)
    assert loss.ids() == ["ran", "old", "young"]


def test_a_loss_is_complete_when_every_gateway_that_lives_has_told() -> None:
    casualties = Casualties()
    assert casualties.loss((7, 1), set()).is_complete
    assert not casualties.loss((7, 1), {0, 1}).is_complete
    casualties.told(0, ended(7))
    assert not casualties.loss((7, 1), {0, 1}).is_complete
    assert casualties.loss((7, 1), {0}).is_complete
    assert not casualties.loss((7, 2), {0}).is_complete


def test_a_gateway_that_tells_twice_counts_once() -> None:
    casualties = Casualties()
    for _ in range(2):
        casualties.told(0, ended(7, request("a")))
    assert casualties.loss((7, 1), {0}).in_flight == 1


def test_lives_of_long_ago_are_forgotten() -> None:
    casualties = Casualties()
    for instance in range(LIVES_KEPT + 1):
        casualties.told(0, ended(instance, request("a")))
    assert casualties.loss((0, 1), {0}).in_flight == 0
    assert casualties.loss((1, 1), {0}).in_flight == 1
