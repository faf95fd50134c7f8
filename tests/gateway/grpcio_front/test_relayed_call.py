"""One call between grpcio and a gateway: messages whole, and no more under way than was granted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mmsup.gateway.grpcio_front.relayed_call import CallLost, RelayedCall
from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import block_of
from mmsup.ipc.rpc.relay_frames import CANCEL, DATA, GRANT, HEADERS, TRAILERS, WINDOW_BYTES, RelayReader

STATUS = [(b"grpc-status", b"0")]


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Gateway:
    """Takes what the call sends."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.call = RelayedCall(1, self._write)

    def _write(self, data: bytes) -> None:
        RelayReader().feed(data, lambda kind, _, payload: self.frames.append((kind, payload)))

    def body(self) -> bytes:
        return b"".join(payload for kind, payload in self.frames if kind == DATA)

    def granted(self) -> int:
        return sum(relay_frames.granted_bytes(payload) for kind, payload in self.frames if kind == GRANT)


def run(test: Callable[[Gateway], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test(Gateway())

    asyncio.run(main())


def test_a_message_beyond_the_window_waits_for_the_gateway() -> None:
    async def check(gateway: Gateway) -> None:
        message = bytes(WINDOW_BYTES)
        sending = asyncio.create_task(gateway.call.send(message))
        await asyncio.sleep(0)
        assert (len(gateway.body()), sending.done()) == (WINDOW_BYTES, False)
        gateway.call.on_frame(GRANT, relay_frames.grant(1, 5)[9:])
        await sending
        assert gateway.body() == framed(message)

    run(check)


def test_replies_come_whole_then_the_trailers() -> None:
    async def check(gateway: Gateway) -> None:
        call = gateway.call
        call.on_frame(HEADERS, block_of([(b"a", b"1")]))
        body = framed(b"one") + framed(b"two")
        for at in range(0, len(body), 3):
            call.on_frame(DATA, body[at : at + 3])
        call.on_frame(TRAILERS, block_of(STATUS))
        assert [await call.next_event() for _ in range(4)] == [[(b"a", b"1")], b"one", b"two", STATUS]
        call.cancel()
        assert CANCEL not in [kind for kind, _ in gateway.frames], "the call is over"

    run(check)


def test_a_client_that_does_not_read_stops_its_gateway_and_a_large_message_comes_whole() -> None:
    async def check(gateway: Gateway) -> None:
        call = gateway.call
        large = framed(bytes(3 * WINDOW_BYTES))
        call.on_frame(DATA, large[:WINDOW_BYTES])
        assert gateway.granted() == WINDOW_BYTES, "it has to come whole"
        call.on_frame(DATA, large[WINDOW_BYTES:])
        before = gateway.granted()
        call.on_frame(DATA, framed(bytes(1000)))
        call.on_frame(DATA, framed(bytes(1000))[:100])
        assert gateway.granted() == before, "two messages wait for the client"
        for _ in range(2):
            await call.next_event()
        assert gateway.granted() == len(large) + 1005 + 100

    run(check)


def test_a_call_whose_gateway_is_gone_is_lost_after_what_had_come() -> None:
    async def check(gateway: Gateway) -> None:
        gateway.call.on_frame(DATA, framed(b"one"))
        gateway.call.lose()
        assert await gateway.call.next_event() == b"one"
        with pytest.raises(CallLost):
            await gateway.call.next_event()
        await gateway.call.send(bytes(2 * WINDOW_BYTES))  # goes nowhere, and waits for nothing

    run(check)


def test_a_client_that_is_gone_cancels_once() -> None:
    async def check(gateway: Gateway) -> None:
        gateway.call.cancel()
        gateway.call.cancel()
        assert [kind for kind, _ in gateway.frames] == [CANCEL]

    run(check)
