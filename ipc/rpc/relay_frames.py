"""What the gRPC front process and a gateway say to each other, over a stream socket: frames of calls.

    u32 size of the payload, u8 kind, u32 call    then the payload

The front numbers the calls of a connection, and opens each with OPEN. Both sides send DATA, the body of the call with
gRPC's prefixes, only as far as the other one has granted: WINDOW_BYTES at first, then by GRANT. The gateway ends a call
with TRAILERS, the front with CANCEL; both forget it then, and ignore what still comes for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

OPEN: Final = 1
"""Front to gateway: a block of headers, after one byte that says whether the client is on this machine."""
DATA: Final = 2
END: Final = 3
"""Front to gateway: the body is complete."""
CANCEL: Final = 4
"""Front to gateway: the client is gone. Gateway to front: the call ends without a status."""
HEADERS: Final = 5
"""Gateway to front: a block, once and before DATA."""
TRAILERS: Final = 6
"""Gateway to front: a block with `grpc-status`; the call is over."""
GRANT: Final = 7
"""Either way: the payload is a u32, as many bytes of DATA may be sent more."""
RETIRE: Final = 8
"""Gateway to front: open no more calls here."""

WINDOW_BYTES: Final = 1 << 18
DATA_BYTES: Final = 1 << 18
"""Of one frame, at most."""
_HEAD: Final = struct.Struct(">IBI")
_GRANT: Final = struct.Struct(">I")
MAX_GRANT: Final = (1 << 32) - 1


class BrokenRelay(Exception):  # noqa: N818 - says what has happened
    """The other side does not keep to the protocol."""


def frame(kind: int, call: int, payload: bytes | memoryview = b"") -> bytes:
    return b"".join((_HEAD.pack(len(payload), kind, call), payload))


def grant(call: int, size: int) -> bytes:
    return frame(GRANT, call, _GRANT.pack(min(size, MAX_GRANT)))


def granted_bytes(payload: bytes) -> int:
    if len(payload) != _GRANT.size:
        raise BrokenRelay("a grant has another size")
    return int(_GRANT.unpack(payload)[0])


class RelayReader:
    """Takes frames out of the bytes of a connection."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes, on_frame: Callable[[int, int, bytes], None]) -> None:
        """Call `on_frame` with kind, call and payload of each that is complete; BrokenRelay for a frame too large."""
        if self._held:
            data = self._held + data
        at = 0
        while len(data) - at >= _HEAD.size:
            size, kind, call = _HEAD.unpack_from(data, at)
            if size > DATA_BYTES:
                raise BrokenRelay("a frame is too large")
            end = at + _HEAD.size + size
            if end > len(data):
                break
            on_frame(kind, call, data[at + _HEAD.size : end])
            at = end
        self._held = data[at:]
