"""A connection from its first byte to its last, on a transport that the test drives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from fake_transport import FakeTransport, quiet
from http2_client import GET, START, Frame, Recorder, body_of, data, frame, frames_of, headers
from mmsup.gateway.http2 import connection, frames
from mmsup.gateway.http2.connection import PREFACE_LIMIT_S, SEND_LIMIT_S, Http2Connection
from mmsup.gateway.http2.frame_reader import FRAME_BYTES, FRAMES_A_TURN
from mmsup.gateway.http2.outgoing import WRITE_HIGH_BYTES
from mmsup.gateway.http2.stream import Stream, StreamHandler
from mmsup.gateway.http2.streams import STREAM_WINDOW, STREAMS_LIMIT

MAX = frames.MAX_WINDOW


class SlowTransport(FakeTransport):
    """One whose client reads when the test lets it."""

    unread = 0
    high = 1 << 62

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or self.high

    def write(self, data: Any) -> None:
        super().write(data)
        self.unread += len(data)
        if self.unread > self.high:
            self.protocol.pause_writing()

    def read_all(self) -> None:
        was, self.unread = self.unread, 0
        if was > self.high:
            self.protocol.resume_writing()


@dataclass
class Session:
    """One connection, whose client the test is."""

    limit: int = 1
    handlers: dict[int, Recorder] = field(default_factory=dict)
    connections: list[Http2Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = Http2Connection(self, self._open)
        self.pipe = SlowTransport(self.connection)

    def _open(self, stream: Stream) -> StreamHandler:
        made = self.handlers[stream.number] = Recorder(stream)
        return made

    def admit(self, connection: Http2Connection, transport: asyncio.BaseTransport) -> bool:
        self.connections.append(connection)
        return len(self.connections) <= self.limit

    def remove(self, connection: Http2Connection) -> None:
        self.connections.remove(connection)

    async def send(self, *given: bytes) -> list[Frame]:
        for each in given:
            self.pipe.send(each)
        return await self.taken()

    async def taken(self) -> list[Frame]:
        """What was written since the last call."""
        await quiet(self.pipe)
        made = frames_of(bytes(self.pipe.written))
        self.pipe.written.clear()
        return made


def run(test: Callable[[Session], Awaitable[None]], limit: int = 1) -> None:
    async def main() -> None:
        session = Session(limit)
        await test(session)
        session.pipe.close()
        await quiet(session.pipe)
        assert not session.connections
        assert not [each for each in session.handlers.values() if not each.stream.is_closed]

    asyncio.run(main())


async def opened(session: Session, *more: bytes) -> Recorder:
    """The handler of stream 1 of a connection that has begun."""
    await session.send(START, *more, headers(1))
    return session.handlers[1]


def test_the_server_speaks_first_and_says_its_limits() -> None:
    async def check(session: Session) -> None:
        settings, update = await session.taken()
        assert dict(frames.read_settings(settings.payload)) == {
            frames.MAX_CONCURRENT_STREAMS: STREAMS_LIMIT,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_FRAME_SIZE: FRAME_BYTES,
            frames.MAX_HEADER_LIST_SIZE: 1 << 14,
        }
        assert (update.stream, update.number) == (0, (1 << 24) - frames.DEFAULT_WINDOW)

    run(check)


def test_another_implementation_sends_a_request_and_gets_its_reply() -> None:
    async def check(session: Session) -> None:
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=False))
        client.initiate_connection()
        client.send_headers(1, [*GET, (b"x", b"y" * 300)])
        client.send_data(1, b"a question", end_stream=True, pad_length=7)
        await session.send(client.data_to_send())
        handler = session.handlers[1]
        assert (handler.body, handler.events) == (b"a question", ["data", "end"])
        assert handler.stream.headers == [*GET, (b"x", b"y" * 300)]
        handler.stream.send_headers(b"\x88")
        handler.stream.send_data([b"an answer"])
        handler.stream.end(b"\x00\x0bgrpc-status\x010")
        await quiet(session.pipe)
        seen = client.receive_data(bytes(session.pipe.written))
        session.pipe.written.clear()
        answers = [each for each in seen if getattr(each, "stream_id", 0) == 1]
        assert [type(each).__name__ for each in answers] == [
            "ResponseReceived",
            "DataReceived",
            "TrailersReceived",
            "StreamEnded",
        ]

    run(check)


def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    async def check(session: Session) -> None:
        handler = await opened(session)
        writes: list[bytes] = []
        session.pipe.write = writes.append  # type: ignore[assignment, method-assign]
        handler.stream.send_headers(b"")
        handler.stream.send_data([b"a", b"b"])
        handler.stream.end(b"")
        assert not writes
        await quiet(session.pipe)
        assert len(writes) == 1

    run(check)


def test_another_protocol_is_told_what_is_spoken_here() -> None:
    async def check(session: Session) -> None:
        *_, goaway = await session.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert goaway.code == frames.PROTOCOL_ERROR
        assert b"speaks gRPC" in goaway.payload
        assert session.pipe.closing

    run(check)


def test_who_breaks_a_rule_is_told_and_its_streams_end() -> None:
    async def check(session: Session) -> None:
        handler = await opened(session)
        *_, goaway = await session.send(data(9, b"x") + headers(3))
        assert (goaway.kind, goaway.code) == (frames.GOAWAY, frames.PROTOCOL_ERROR)
        assert goaway.payload[:4] == b"\0\0\0\x01", "the last stream that was served"
        assert handler.events == ["reset"]
        assert list(session.handlers) == [1]
        assert session.pipe.closing

    run(check)


def test_a_client_that_is_gone_resets_its_streams() -> None:
    async def check(session: Session) -> None:
        handler = await opened(session)
        session.pipe.close()
        await quiet(session.pipe)
        assert handler.events == ["reset"]
        handler.stream.send_data([b"x"])
        handler.stream.end(b"")

    run(check)


def test_a_connection_too_many_is_closed_and_says_nothing() -> None:
    async def check(session: Session) -> None:
        assert session.pipe.closing
        assert not session.pipe.written

    run(check, limit=0)


def test_a_client_that_never_begins_is_cut_off() -> None:
    async def check(session: Session) -> None:
        await session.send(frames.PREFACE[:-1])
        session.connection.on_tick(time.monotonic())
        assert not session.pipe.closing
        session.connection._made_s -= PREFACE_LIMIT_S + 1
        session.connection.on_tick(time.monotonic())
        assert session.pipe.closing

    run(check)


def test_an_idle_connection_stays_and_may_be_evicted() -> None:
    async def check(session: Session) -> None:
        await session.send(START)
        session.connection._made_s -= 1e6
        session.connection.on_tick(time.monotonic() + 1e6)
        assert not session.pipe.closing
        assert session.connection.is_evictable
        await session.send(headers(1))
        assert not session.connection.is_evictable

    run(check)


def test_a_retired_connection_finishes_its_streams_and_ends_with_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GOAWAY_S", 0)

    async def check(session: Session) -> None:
        handler = await opened(session)
        session.connection.retire()
        session.connection.retire()
        (goaway,) = [each for each in await session.taken() if each.kind == frames.GOAWAY]
        assert (goaway.payload[:4], goaway.code) == (b"\0\0\0\x01", frames.NO_ERROR)
        await session.send(headers(3), data(1, b"abc", end=True))
        assert (list(session.handlers), handler.events) == ([1], ["data", "end"])
        session.connection.on_tick(time.monotonic())
        assert not session.pipe.closing
        handler.stream.end(b"tail")
        session.connection.on_tick(time.monotonic())
        assert (await session.taken())[-1].payload == b"tail"
        assert session.pipe.closing

    run(check)


def test_an_idle_connection_that_is_retired_ends_when_its_client_has_had_time_to_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it sends meanwhile is ignored, and sent again elsewhere; on a closed socket it would be lost."""
    monkeypatch.setattr(connection, "GOAWAY_S", 60)

    async def check(session: Session) -> None:
        await session.send(START)
        session.connection.retire()
        session.connection.retire()
        assert (await session.taken())[-1].kind == frames.GOAWAY
        session.connection.on_tick(time.monotonic())
        await session.send(headers(1), data(1, b"abc", end=True))
        assert (session.pipe.closing, session.handlers) == (False, {})
        monkeypatch.setattr(connection, "GOAWAY_S", 0)
        session.connection.on_tick(time.monotonic())
        assert session.pipe.closing

    run(check)


def test_data_that_waits_too_long_for_a_window_is_given_up() -> None:
    async def check(session: Session) -> None:
        handler = await opened(session, frames.settings({frames.INITIAL_WINDOW_SIZE: 1}))
        handler.stream.send_data([b"abc"])
        await session.taken()
        session.connection.on_tick(time.monotonic() + SEND_LIMIT_S - 1)
        assert handler.events == ["tick"]
        session.connection.on_tick(time.monotonic() + SEND_LIMIT_S + 1)
        (reset,) = await session.taken()
        assert (reset.kind, reset.number) == (frames.RST_STREAM, frames.CANCEL)
        assert handler.events == ["tick", "sent", "reset"]
        assert not session.pipe.closing

    run(check)


def test_of_a_reply_that_nobody_reads_little_is_copied_however_large_the_windows() -> None:
    async def check(session: Session) -> None:
        handler = await opened(
            session, frames.settings({frames.INITIAL_WINDOW_SIZE: MAX}), frames.window_update(0, MAX - 65535)
        )
        handler.stream.send_data([bytes(32 * WRITE_HIGH_BYTES)])
        handler.stream.end(b"tail")
        seen = body_of(await session.taken(), 1)
        assert WRITE_HIGH_BYTES <= len(seen) < 3 * WRITE_HIGH_BYTES
        assert "sent" not in handler.events
        session.pipe.read_all()
        more = body_of(await session.taken(), 1)
        assert WRITE_HIGH_BYTES <= len(more) < 3 * WRITE_HIGH_BYTES
        session.connection.on_tick(time.monotonic() + SEND_LIMIT_S + 1)
        assert handler.events[-2:] == ["sent", "reset"]
        session.pipe.read_all()

    run(check)


def test_a_large_reply_reaches_a_client_that_reads_in_full() -> None:
    async def check(session: Session) -> None:
        handler = await opened(
            session, frames.settings({frames.INITIAL_WINDOW_SIZE: MAX}), frames.window_update(0, MAX - 65535)
        )
        sent = bytes(range(256)) * (WRITE_HIGH_BYTES // 64)
        handler.stream.send_data([sent])
        handler.stream.end(b"tail")
        got = bytearray()
        while not handler.stream.is_closed:
            got += body_of(await session.taken(), 1)
            session.pipe.read_all()
        got += body_of(await session.taken(), 1)
        assert got == sent

    run(check)


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async def check(session: Session) -> None:
        handler = await opened(
            session, frames.settings({frames.INITIAL_WINDOW_SIZE: MAX}), frames.window_update(0, MAX - 65535)
        )
        handler.stream.send_data([bytes(4 * WRITE_HIGH_BYTES)])
        await session.taken()
        assert session.pipe.paused
        assert not await session.send(frame(frames.PING, bytes(8)))
        session.pipe.read_all()
        assert frames.PING in [each.kind for each in await session.taken()]

    run(check)


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_a_request_is_the_same_in_whatever_pieces_it_comes(size: int) -> None:
    async def check(session: Session) -> None:
        whole = START + headers(1) + data(1, b"abc" * 50) + data(1, end=True)
        await session.send(*[whole[at : at + size] for at in range(0, len(whole), size)])
        handler = session.handlers[1]
        assert (handler.body, handler.events[-1]) == (b"abc" * 50, "end")

    run(check)


def test_who_sends_many_frames_at_once_gives_others_a_turn_and_gets_all_of_them_served() -> None:
    async def check(session: Session) -> None:
        await session.send(START)
        count = 3 * FRAMES_A_TURN
        session.pipe.send(b"".join(headers(2 * number + 1, end=True) for number in range(count)))
        assert len(session.handlers) == FRAMES_A_TURN
        assert session.pipe.paused
        await session.send(headers(2 * count + 1, end=True))
        assert len(session.handlers) == count + 1
        assert not session.pipe.paused

    run(check)


def test_who_breaks_a_rule_after_many_frames_is_told_so_too() -> None:
    async def check(session: Session) -> None:
        await session.send(START)
        *_, goaway = await session.send(frames.settings({99: 1}) * 150 + data(9, b"x"))
        assert (goaway.kind, goaway.code) == (frames.GOAWAY, frames.PROTOCOL_ERROR)

    run(check)
