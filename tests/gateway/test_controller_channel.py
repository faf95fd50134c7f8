"""Commands to the controller, and the report of what was in flight when a worker exited."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mmsup.gateway.controller_channel import (
    ID_CHARACTERS,
    LOST_DETAILS_LIMIT,
    ControllerCalls,
    link_closed_message,
)
from mmsup.gateway.dispatch.in_flight import CloseRecord, InFlightRequest, LostRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.errors import ServerError
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest, InFlight, LinkClosed
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT

NOW_NS = 5_000_000_000


def lost(client_id: str = "", *, started: bool = False, abandoned: bool = False) -> LostRequest:
    message = Infer(1, b"", 0, None, ())
    request = InFlightRequest(message, [], lambda _: None, None, client_id, 3_000_000_000, abandoned=abandoned)
    return LostRequest(request, started)


def report(*each: LostRequest) -> LinkClosed:
    link: Any = SimpleNamespace(worker_id=(7, 2), close_record=CloseRecord(list(each)))  # all that is read of a link
    return link_closed_message(cast("WorkerLink", link), NOW_NS)


def test_requests_that_had_started_come_first_and_all_are_counted() -> None:
    assert report(lost("a"), lost("b", started=True), lost("c", abandoned=True)) == LinkClosed(
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


def test_a_link_that_closes_empty_is_reported_as_empty() -> None:
    assert report() == LinkClosed(7, 2, 0, 0, ())


def test_the_described_requests_are_bounded_and_their_number_is_not() -> None:
    message = report(*[lost("\U0001f600" * 1000) for _ in range(1000)])
    assert (message.in_flight, len(message.requests)) == (1000, LOST_DETAILS_LIMIT)
    assert len(message.requests[0].id) == ID_CHARACTERS
    assert len(encode(message)) < MESSAGE_LIMIT


def test_a_new_controller_ends_the_commands_to_the_old_one() -> None:
    async def run() -> None:
        sent: list[CommandRequest] = []
        calls = ControllerCalls(sent.append)
        task = asyncio.create_task(calls.call("load", {"name": "m"}))
        await asyncio.sleep(0)
        calls.on_controller_restart()
        with pytest.raises(ServerError) as caught:
            await task
        assert caught.value.code == "unavailable"
        calls.on_reply(CommandReply(sent[0].id, "", "", 0.0, {}))

    asyncio.run(run())
