"""Commands to the controller, and the report of what was in flight when a worker exited."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest

from harness.table_sizes import table_sizes
from mmsup.gateway.controller_channel import (
    ID_CHARACTERS,
    LOST_DETAILS_LIMIT,
    ControllerCalls,
    ControllerClient,
    link_closed_message,
)
from mmsup.gateway.dispatch.in_flight import CloseRecord, InFlightRequest, LostRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.errors import ServerError
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.messages.gateway_control import (
    CommandReply,
    CommandRequest,
    ConfigureGateway,
    InFlight,
    LinkClosed,
    LinkWorker,
    Ping,
    Synced,
    UnlinkWorker,
)
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT, ControlChannel

NOW_NS = 5_000_000_000
SPEC = ModelSpec("m", "1", "/nowhere", "model.py", "custom", "python")
METADATA = Metadata("python", 0, (), ())


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


def test_no_table_grows_with_the_workers_that_come_and_go() -> None:
    async def run() -> None:
        near, far = ControlChannel.pair()
        configure = ConfigureGateway(WIRE_VERSION, 0, 1, "mmsup", "0", 1, 1, 1.0, 1, 1)
        router = MagicMock()
        router.links.by_worker, router.waiters.cold_starts.close = {}, AsyncMock()
        client = ControllerClient(near, configure, router, MagicMock())

        async def answered(number: int) -> None:
            far.send(encode(Ping(number)))
            replies = 0
            while replies < 1:
                received = far.receive()
                replies += received is not None and b"Pong" in received[0]
                await asyncio.sleep(0)

        far.send(encode(Synced(ready=True, reason="")))
        await client.synced.wait()
        await answered(1)
        before = table_sizes(client)
        for number in range(20):
            far.send(encode(LinkWorker(number, 1, "", b"", SPEC, METADATA)))
            far.send(encode(UnlinkWorker(number, 1)))
        await answered(2)
        assert router.links.stop_routing.call_count == 20
        assert table_sizes(client) == before
        await client.close()
        far.close()

    asyncio.run(run())
