"""One blocking connection to a server. Each operation has a deadline, in seconds of CLOCK_MONOTONIC."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Final

from mmsup.client import http_message
from mmsup.client.address import ServerAddress
from mmsup.client.errors import ConnectionFailed, InvalidReply, TimedOut
from mmsup.client.http_message import ChunkedBody, ResponseHead
from mmsup.client.replies import HttpReply

READ_BYTES: Final = 1 << 16
_PARTS_LIMIT: Final = 64
"""Buffers of one system call."""
TIMED_OUT: Final = "there was no answer in time"


class SyncConnection:
    def __init__(self, address: ServerAddress, deadline_s: float) -> None:
        """ConnectionFailed or TimedOut if there is no server."""
        self._rest = bytearray()
        """Bytes behind what was read."""
        self.is_usable = True
        """Another request may follow."""
        try:
            self._socket = _connected(address, _left_s(deadline_s))
        except TimeoutError:
            raise TimedOut(f"no connection to {address} in time") from None
        except OSError as error:
            raise ConnectionFailed(f"no connection to {address}: {error.strerror or error}") from None

    @property
    def is_stale(self) -> bool:
        """The server has closed it, or sent what nobody asked for."""
        return not self.is_usable or bool(select.select([self._socket], [], [], 0)[0])

    def send(self, parts: Sequence[bytes | memoryview], deadline_s: float) -> None:
        self.is_usable = False
        waiting = [memoryview(each).cast("B") for each in parts if len(each)]
        try:
            while waiting:
                self._socket.settimeout(_left_s(deadline_s))
                count = self._socket.sendmsg(waiting[:_PARTS_LIMIT])
                while waiting and count >= len(waiting[0]):
                    count -= len(waiting.pop(0))
                if count:
                    waiting[0] = waiting[0][count:]
        except TimeoutError:
            raise TimedOut(TIMED_OUT) from None
        except (BrokenPipeError, ConnectionResetError):
            return  # the server has answered before it has read all, or is gone: what it said says which
        except OSError as error:
            raise ConnectionFailed(f"the connection ended: {error.strerror or error}", was_sent=True) from None

    def receive(self, deadline_s: float) -> HttpReply:
        """The whole answer."""
        head = self.receive_head(deadline_s)
        return HttpReply(head, self.receive_rest(head, deadline_s))

    def receive_rest(self, head: ResponseHead, deadline_s: float) -> memoryview:
        """The body behind a head."""
        if head.length is None:
            left_s = _left_s(deadline_s)
            return memoryview(b"".join(self.receive_chunks(left_s)))
        padding = head.padding
        body = memoryview(bytearray(padding + head.length))[padding:]
        at = min(len(self._rest), head.length)
        body[:at] = self._rest[:at]
        del self._rest[:at]
        while at < head.length:
            at += self._read_into(body[at:], deadline_s)
        self.is_usable = not head.is_last
        return body

    def receive_head(self, deadline_s: float) -> ResponseHead:
        while True:
            before, found, rest = bytes(self._rest).partition(http_message.END)
            if found:
                self._rest = bytearray(rest)
                try:
                    head = http_message.parse_head(before)
                except ValueError as error:
                    raise InvalidReply(str(error)) from None
                if head.status != 100:
                    return head
                continue
            if len(before) > http_message.HEAD_LIMIT_BYTES:
                raise InvalidReply("the head of the answer has no end")
            self._rest += self._read(deadline_s)

    def receive_chunks(self, silence_s: float | None) -> Iterator[bytes]:
        """The pieces of a chunked body as they come, each within `silence_s`; None: whenever it comes."""
        body = ChunkedBody()
        data, self._rest = bytes(self._rest), bytearray()
        while True:
            try:
                piece = body.feed(data)
            except ValueError as error:
                raise InvalidReply(str(error)) from None
            if piece:
                yield piece
            if body.is_complete:
                self.is_usable = True
                return
            data = self._read(None if silence_s is None else time.monotonic() + silence_s)

    def _read(self, deadline_s: float | None) -> bytes:
        buffer = bytearray(READ_BYTES)
        return bytes(buffer[: self._read_into(memoryview(buffer), deadline_s)])

    def _read_into(self, view: memoryview, deadline_s: float | None) -> int:
        try:
            self._socket.settimeout(None if deadline_s is None else _left_s(deadline_s))
            count = self._socket.recv_into(view)
        except TimeoutError:
            raise TimedOut(TIMED_OUT) from None
        except OSError as error:
            raise ConnectionFailed(f"the connection ended: {error.strerror or error}", was_sent=True) from None
        if not count:
            raise ConnectionFailed("the server closed the connection before its answer was complete", was_sent=True)
        return count

    def close(self) -> None:
        self.is_usable = False
        self._socket.close()


def _connected(address: ServerAddress, limit_s: float) -> socket.socket:
    if not address.path:
        made = socket.create_connection((address.host, address.port), limit_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(limit_s)
        made.connect(address.path)
    except BaseException:
        made.close()
        raise
    return made


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimedOut(TIMED_OUT)
    return left_s
