"""What a call needs of the stream that it runs on: one of HTTP/2, or one that the gRPC front process relays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mmsup.ipc.rpc.header_literals import Headers


class CallStream(Protocol):
    @property
    def headers(self) -> Headers: ...

    @property
    def is_ended_by_peer(self) -> bool:
        """The client sends no more."""

    def send_headers(self, block: bytes) -> None: ...

    def send_data(self, parts: Sequence[bytes | memoryview]) -> None:
        """The memory of what waits must stay as it is until `on_sent` of the handler."""

    def end(self, trailers: bytes) -> None:
        """Send these trailers after all data; the stream is closed then."""

    def grant(self, size: int) -> None:
        """Let the client send as many bytes more."""
