"""The client's side of HTTP/2 for tests: frames and header blocks made by hand, and the frames that a server wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.outgoing import Outgoing
from mmsup.gateway.http2.stream import Stream, StreamHandler
from mmsup.gateway.http2.streams import Streams
from mmsup.ipc.rpc.header_literals import block_of

START = frames.PREFACE + frames.settings({})
GET = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"here")]


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """Of an RST_STREAM or WINDOW_UPDATE."""
        return int.from_bytes(self.payload, "big")

    @property
    def code(self) -> int:
        """Of a GOAWAY."""
        return int.from_bytes(self.payload[4:8], "big")


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    return frames.head(len(payload), kind, flags, stream) + payload


def headers(stream: int, block: bytes | None = None, *, end: bool = False, flags: int = frames.END_HEADERS) -> bytes:
    """A HEADERS frame; without a block that of a sound request."""
    ends = frames.END_STREAM if end else 0
    return frame(frames.HEADERS, block_of(GET) if block is None else block, stream, flags | ends)


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    return frame(frames.DATA, payload, stream, frames.END_STREAM if end else 0)


def frames_of(written: bytes) -> list[Frame]:
    """The frames in these bytes, which must be whole."""
    found, at = [], 0
    while at < len(written):
        size, kind, flags, stream = frames.read_head(written, at)
        at += frames.HEAD_BYTES
        assert at + size <= len(written), "a frame is cut off"
        found.append(Frame(kind, flags, stream, written[at : at + size]))
        at += size
    return found


class Recorder:
    """The handler of a stream: remembers what came."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.events: list[str] = []
        self.body = b""

    def on_data(self, given: memoryview) -> None:
        self.body += given
        self.events.append("data")

    def on_end(self) -> None:
        self.events.append("end")

    def on_reset(self) -> None:
        self.events.append("reset")

    def on_sent(self) -> None:
        self.events.append("sent")

    def on_retire(self) -> None:
        self.events.append("retire")

    def on_tick(self, now_s: float) -> None:
        self.events.append("tick")


@dataclass
class Peer:
    """Streams without a connection: a client's frames go in, the server's are kept."""

    written: bytearray = field(default_factory=bytearray)
    handlers: dict[int, Recorder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.streams = Streams(cast("Outgoing", self), self._open)

    def _open(self, stream: Stream) -> StreamHandler:
        made = self.handlers[stream.number] = Recorder(stream)
        return made

    def write(self, *parts: bytes) -> None:
        self.written += b"".join(parts)

    write_data = write
    is_full = False
    data_writes = 0

    def send(self, *given: bytes) -> list[Frame]:
        """Whole frames from the client; what the server wrote for them."""
        for each in frames_of(b"".join(given)):
            if each.kind != frames.DATA:
                self.streams.on_frame(each.kind, each.flags, each.stream, each.payload)
                continue
            self.streams.on_data_head(each.stream, len(each.payload))
            if each.payload:
                self.streams.on_data(each.stream, memoryview(each.payload))
            self.streams.on_data_end(each.stream, each.flags)
        return self.taken()

    def taken(self) -> list[Frame]:
        """What was written since the last call."""
        made = frames_of(bytes(self.written))
        self.written.clear()
        return made

    def opened(self, number: int = 1, *, end: bool = True) -> tuple[Stream, Recorder]:
        """A new stream."""
        assert not self.send(headers(number, end=end))
        return self.handlers[number].stream, self.handlers[number]


def body_of(found: Sequence[Frame], stream: int) -> bytes:
    """The data that was sent on a stream."""
    return b"".join(each.payload for each in found if each.kind == frames.DATA and each.stream == stream)
