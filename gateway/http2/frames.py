"""Frames of HTTP/2: their bytes, and the errors that a peer's frames may be. RFC 9113, sections 4 to 7. Pure."""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = (1 << 31) - 1
DEFAULT_FRAME_BYTES: Final = 1 << 14
LARGEST_FRAME_BYTES: Final = (1 << 24) - 1
_HEAD: Final = struct.Struct(">IBI")
_SETTING: Final = struct.Struct(">HI")
_TWO: Final = struct.Struct(">II")
_ONE: Final = struct.Struct(">I")


class ConnectionFault(Exception):  # noqa: N818 - of the peer
    """The connection must end: GOAWAY with this error code, then close. RFC 9113, 5.4.1."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamFault(Exception):  # noqa: N818 - of the peer
    """One stream must end: RST_STREAM with this error code. RFC 9113, 5.4.2."""

    def __init__(self, stream: int, code: int) -> None:
        super().__init__(f"stream {stream}: error {code}")
        self.stream = stream
        self.code = code


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before `size` bytes of payload."""
    return _HEAD.pack(size << 8 | kind, flags, stream)


def read_head(data: memoryview | bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Size, type, flags and stream of the frame whose head begins at `at`."""
    size_and_kind, flags, stream = _HEAD.unpack_from(data, at)
    return size_and_kind >> 8, size_and_kind & 0xFF, flags, stream & MAX_WINDOW


def settings(values: dict[int, int]) -> bytes:
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK: Final = head(0, SETTINGS, ACK, 0)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """ConnectionFault if the payload is no list of settings, or one has a value that it may not have (6.5.2)."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a SETTINGS frame is cut off")
    found = list(_SETTING.iter_unpack(payload))
    for key, value in found:
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is too large")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value <= LARGEST_FRAME_BYTES:
            raise ConnectionFault(PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of its range")
    return found


def ping(payload: bytes) -> bytes:
    return head(8, PING, 0, 0) + payload


def ping_ack(payload: bytes) -> bytes:
    return head(8, PING, ACK, 0) + payload


def goaway(last_stream: int, code: int, text: str = "") -> bytes:
    payload = _TWO.pack(last_stream, code) + text.encode()
    return head(len(payload), GOAWAY, 0, 0) + payload


def rst_stream(stream: int, code: int) -> bytes:
    return head(4, RST_STREAM, 0, stream) + _ONE.pack(code)


def window_update(stream: int, size: int) -> bytes:
    return head(4, WINDOW_UPDATE, 0, stream) + _ONE.pack(size)


def read_number(payload: bytes) -> int:
    """The 31 bits of a WINDOW_UPDATE, the 32 of an RST_STREAM without its first; ConnectionFault for another size."""
    if len(payload) != _ONE.size:
        raise ConnectionFault(FRAME_SIZE_ERROR, "a frame of four bytes has another size")
    return int(_ONE.unpack(payload)[0]) & MAX_WINDOW


def unpadded(payload: bytes, flags: int) -> bytes:
    """A payload without its padding (6.1); ConnectionFault if there is more of it than there is payload."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def header_block(payload: bytes, flags: int) -> bytes:
    """The fragment of a header block in a HEADERS frame, without padding and priority (6.2)."""
    block = unpadded(payload, flags)
    if not flags & HAS_PRIORITY:
        return block
    if len(block) < 5:
        raise ConnectionFault(FRAME_SIZE_ERROR, "the priority of a HEADERS frame is cut off")
    return block[5:]
