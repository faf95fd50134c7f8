"""What a gateway tells of the end of a life: how much was in flight, and the first of it by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mmsup.gateway.controller_channel import ID_CHARACTERS, LOST_DETAILS_LIMIT, link_closed_message
from mmsup.gateway.dispatch.in_flight import InFlightRequest, LostRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.messages.gateway_control import InFlight, LinkClosed
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT

NOW_NS = 5_000_000_000


def lost(name: str = "", *, begun: bool = False, abandoned: bool = False) -> LostRequest:
    entry = InFlightRequest(Infer(1, b"", 0, None, ()), [], lambda _: None, None, name)
    entry.sent_ns = 3_000_000_000
    entry.abandoned = abandoned
    return LostRequest(entry, begun)


def told(*each: LostRequest) -> LinkClosed:
    link: Any = SimpleNamespace(worker_id=(7, 2), lost_requests=list(each))  # all of a link that is looked at
    return link_closed_message(cast("WorkerLink", link), NOW_NS)


def test_those_that_had_begun_come_first_and_all_are_counted() -> None:
    assert told(lost("a"), lost("b", begun=True), lost("c", abandoned=True)) == LinkClosed(
        7,
        2,
        3,
        1,
        (
            InFlight("b", begun=True, abandoned=False, age_s=2.0),
            InFlight("a", begun=False, abandoned=False, age_s=2.0),
            InFlight("c", begun=False, abandoned=True, age_s=2.0),
        ),
    )


def test_a_link_that_ends_empty_says_so() -> None:
    assert told() == LinkClosed(7, 2, 0, 0, ())


def test_the_names_are_bounded_and_the_number_is_not() -> None:
    message = told(*[lost("\U0001f600" * 1000) for _ in range(1000)])
    assert (message.in_flight, len(message.requests)) == (1000, LOST_DETAILS_LIMIT)
    assert len(message.requests[0].id) == ID_CHARACTERS
    assert len(encode(message)) < MESSAGE_LIMIT
