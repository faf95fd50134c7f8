"""Connections to the gateways: one for each, calls go to the one with the fewest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from mmsup.gateway.grpcio_front.relayed_call import RelayedCall
from mmsup.ipc.rpc import relay_frames
from mmsup.ipc.rpc.header_literals import Headers, block_of
from mmsup.ipc.rpc.relay_frames import BrokenRelay, RelayReader

CONNECT_LIMIT_S: Final = 5.0
LAST_CALL: Final = (1 << 32) - 2
WRITE_HIGH_BYTES: Final = 1 << 21


class RelayLink(asyncio.Protocol):
    def __init__(self, on_closed: Callable[[RelayLink], None]) -> None:
        self._on_closed = on_closed
        self._reader = RelayReader()
        self._transport: asyncio.Transport | None = None
        self.calls: dict[int, RelayedCall] = {}
        self._last_number = 0
        self.is_retired = False
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None
        self._is_writable.set()
        self._on_closed(self)
        for call in list(self.calls.values()):
            call.lose()
        self.calls.clear()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data, self._on_frame)
        except (BrokenRelay, ValueError):
            self.close()

    def pause_writing(self) -> None:
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self._is_writable.set()

    async def wait_until_writable(self) -> None:
        await self._is_writable.wait()

    def open(self, headers: Headers, *, is_local: bool) -> RelayedCall:
        self._last_number = self._last_number % LAST_CALL + 1
        call = self.calls[self._last_number] = RelayedCall(self._last_number, self._write)
        payload = bytes((is_local,)) + block_of(headers)
        self._write(relay_frames.frame(relay_frames.OPEN, call.number, payload))
        return call

    def forget(self, call: RelayedCall) -> None:
        """It is over, for whatever reason."""
        call.cancel()
        self.calls.pop(call.number, None)
        self._close_if_done()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == relay_frames.RETIRE:
            self.is_retired = True
            self._close_if_done()
            return
        call = self.calls.get(number)
        if call is not None:
            call.on_frame(kind, payload)

    def _close_if_done(self) -> None:
        if self.is_retired and not self.calls:
            self.close()


class RelayLinks:
    """`count`: how many connections there are to be. `path`: where the gateways accept them."""

    def __init__(self, path: str, count: int) -> None:
        self._path = path
        self._count = count
        self._links: set[RelayLink] = set()
        self._connecting: asyncio.Task[None] | None = None

    async def get(self) -> RelayLink:
        """One for a new call; OSError if none can be had."""
        usable = [each for each in self._links if not each.is_retired]
        if len(usable) < self._count and self._connecting is None:
            self._connecting = asyncio.create_task(self._connect(), name="connect")
        if not usable:
            assert self._connecting is not None, "there is no link, and none is being made"
            await asyncio.shield(self._connecting)
            usable = [each for each in self._links if not each.is_retired]
            if not usable:
                raise ConnectionError("no gateway accepts connections")
        return min(usable, key=lambda each: len(each.calls))

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                loop = asyncio.get_running_loop()
                _, link = await loop.create_unix_connection(lambda: RelayLink(self._links.discard), self._path)
                self._links.add(link)
        except (OSError, TimeoutError):
            pass
        finally:
            self._connecting = None

    def close(self) -> None:
        for link in list(self._links):
            link.close()
