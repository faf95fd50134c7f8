"""Calls that come from the gRPC front process are served as those that come over HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fake_transport import FakeTransport, quiet
from mmsup.gateway.rpc.calls.messages import INFERENCE
from mmsup.gateway.rpc.relay.relay_listener import RelayListener
from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import block_of, read_block
from mmsup.ipc.rpc.relay_frames import CANCEL, DATA, END, GRANT, HEADERS, OPEN, RETIRE, TRAILERS, WINDOW_BYTES, frame
from rpc_session import RpcSession, framed, infer_request, make_router, run

OK, NOT_FOUND, DENIED = b"0", b"5", b"7"


class Front:
    """The other end of a connection to a gateway."""

    def __init__(self, session: RpcSession) -> None:
        self.session = session
        self.listener = RelayListener(session.server.open_stream)
        self.pipe = FakeTransport(self.listener())
        self.frames: list[tuple[int, int, bytes]] = []

    def open(self, call: int, method: str, *, is_local: bool = True) -> None:
        headers = [
            *((b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{INFERENCE}/{method}".encode())),
            (b"content-type", b"application/grpc"),
        ]
        self.pipe.send(frame(OPEN, call, bytes((is_local,)) + block_of(headers)))

    async def taken(self) -> list[tuple[int, int, bytes]]:
        """What the gateway wrote since the last call."""
        await quiet(self.pipe)
        found: list[tuple[int, int, bytes]] = []
        relay_frames.RelayReader().feed(bytes(self.pipe.written), lambda *each: found.append(each))
        self.pipe.written.clear()
        return found

    async def status(self, call: int) -> bytes:
        """Of a call, once it is over."""
        async with asyncio.timeout(20):
            while True:
                self.frames += await self.taken()
                for kind, number, payload in self.frames:
                    if (kind, number) == (TRAILERS, call):
                        return dict(read_block(payload))[b"grpc-status"]
                await asyncio.sleep(0.001)

    def body(self, call: int) -> bytes:
        return b"".join(payload for kind, number, payload in self.frames if (kind, number) == (DATA, call))


def relayed(test: Callable[[Front], Awaitable[None]]) -> None:
    async def check(session: RpcSession) -> None:
        front = Front(session)
        try:
            await test(front)
        finally:
            front.pipe.close()
            await quiet(front.pipe)
        assert front.listener.is_empty

    run(check, make_router)


def test_an_inference_has_headers_a_reply_and_trailers() -> None:
    async def check(front: Front) -> None:
        front.open(1, "ModelInfer")
        front.pipe.send(frame(DATA, 1, framed(infer_request().SerializeToString())) + frame(END, 1))
        assert await front.status(1) == OK
        assert [kind for kind, _, _ in front.frames] == [HEADERS, DATA, TRAILERS]
        front.open(2, "ModelInfer")
        front.pipe.send(frame(DATA, 2, framed(infer_request(model_name="no").SerializeToString())) + frame(END, 2))
        assert await front.status(2) == NOT_FOUND

    relayed(check)


def test_control_calls_are_answered_to_clients_on_this_machine_alone() -> None:
    async def check(front: Front) -> None:
        for call, is_local in enumerate((True, False), 1):
            front.open(call, "RepositoryModelUnload", is_local=is_local)
            front.pipe.send(frame(DATA, call, framed(b"")) + frame(END, call))
        assert await front.status(2) == DENIED
        assert await front.status(1) != DENIED

    relayed(check)


def test_a_large_message_is_granted_and_a_large_reply_waits_for_grants() -> None:
    async def check(front: Front) -> None:
        whole = framed(infer_request([1.0] * (WINDOW_BYTES // 2)).SerializeToString())
        front.open(1, "ModelInfer")
        at, allowed = 0, WINDOW_BYTES
        while at < len(whole):
            piece = whole[at : min(allowed, at + WINDOW_BYTES)]
            assert piece, "nothing more is granted"
            front.pipe.send(frame(DATA, 1, piece))
            at += len(piece)
            front.frames += await front.taken()  # after the last piece the reply may be among them
            grants = [relay_frames.granted_bytes(payload) for kind, _, payload in front.frames if kind == GRANT]
            allowed = WINDOW_BYTES + sum(grants)
        front.pipe.send(frame(END, 1))
        async with asyncio.timeout(20):
            while len(front.body(1)) < WINDOW_BYTES:
                front.frames += await front.taken()
                await asyncio.sleep(0.001)
        assert len(front.body(1)) == WINDOW_BYTES, "no more than was granted"
        front.pipe.send(relay_frames.grant(1, 1 << 30))
        assert await front.status(1) == OK
        assert len(front.body(1)) > 2 * WINDOW_BYTES

    relayed(check)


def test_a_call_that_is_cancelled_or_whose_front_is_gone_leaves_nothing_open() -> None:
    async def check(front: Front) -> None:
        async def hold() -> None:
            await asyncio.Event().wait()

        front.session.router.before_infer = hold  # type: ignore[method-assign]
        for call in (1, 2):
            front.open(call, "ModelInfer")
            front.pipe.send(frame(DATA, call, framed(infer_request().SerializeToString())) + frame(END, call))
        await front.taken()
        assert front.session.router.unclosed_requests == 2
        front.pipe.send(frame(CANCEL, 1))
        front.pipe.close()  # `run` looks for what is left

    relayed(check)


def test_a_gateway_that_is_retired_says_so_and_what_breaks_the_protocol_ends_the_connection() -> None:
    async def check(front: Front) -> None:
        front.listener.retire()
        assert await front.taken() == [(RETIRE, 0, b"")]
        front.open(1, "ModelInfer")
        front.open(1, "ModelInfer")
        await quiet(front.pipe)
        assert front.pipe.closing

    relayed(check)
