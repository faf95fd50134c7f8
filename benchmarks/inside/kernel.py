"""The kernel's share: the same bytes through a loopback TCP connection and through a socket pair, looked at by nobody.

TCP twice: by plain calls, and by uvloop with a protocol that answers at once, which is what a gateway in Python pays
before its own first line.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from typing import cast

from inside.best import ROUNDS_PER_STAGE, BestTimes

TURNS_A_ROUND = 200
_ROOM = 1 << 16


@dataclass(frozen=True)
class Sizes:
    """Bytes: one request and its reply on the wire, and the frames of a turn by its number of requests."""

    request: int
    reply: int
    out: dict[int, int]
    back: dict[int, int]


def pair(best: BestTimes, sizes: Sizes) -> None:
    """One frame there and one back, for each turn."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    room = memoryview(bytearray(_ROOM * 4))
    with here, there:
        for count in ROUNDS_PER_STAGE:
            out, back = bytes(sizes.out[count]), bytes(sizes.back[count])
            for _ in range(TURNS_A_ROUND * 5):
                begin = time.perf_counter()
                here.send(out)
                sent = time.perf_counter()
                there.recvmsg_into([room], 32)
                there.send(back)
                answered = time.perf_counter()
                here.recv_into(room)
                end = time.perf_counter()
                best.note("pair, gateway", count, end - answered + sent - begin)
                best.note("pair, worker", count, answered - sent)


def tcp(best: BestTimes, sizes: Sizes) -> None:
    """A request received and a reply sent, for each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(max(ROUNDS_PER_STAGE))]
        servers = [listener.accept()[0] for _ in clients]
    room = bytearray(_ROOM)
    request, reply = bytes(sizes.request), bytes(sizes.reply)
    for each in servers:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for count in ROUNDS_PER_STAGE:
        for _ in range(TURNS_A_ROUND):
            _send(clients[:count], request)
            begin = time.perf_counter()
            for each in servers[:count]:
                each.recv_into(room)
                each.send(reply)
            best.note("tcp", count, time.perf_counter() - begin)
            _receive(clients[:count], len(reply))
    for each in (*clients, *servers):
        each.close()


class _Echo(asyncio.BufferedProtocol):
    """Answers whatever comes; says when all of a turn have been answered."""

    def __init__(self, room: memoryview, reply: bytes, served: _Countdown) -> None:
        self._room = room
        self._reply = reply
        self._served = served
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._served.one()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        return self._room

    def buffer_updated(self, nbytes: int) -> None:  # noqa: ARG002 - one request comes at a time
        assert self.transport is not None, "bytes come on a connection"
        self.transport.write(self._reply)
        self._served.one()


class _Countdown:
    """Counts down to the end of a turn."""

    def __init__(self) -> None:
        self._left = 0
        self._end: asyncio.Future[None] | None = None

    def expect(self, count: int) -> asyncio.Future[None]:
        """The end of a turn of so many."""
        self._left = count
        self._end = asyncio.get_running_loop().create_future()
        return self._end

    def one(self) -> None:
        """One more."""
        self._left -= 1
        if not self._left and self._end is not None:
            self._end.set_result(None)


async def loop(best: BestTimes, sizes: Sizes) -> None:
    """The same by the event loop, until the bytes are in the sockets."""
    room, reply, request, served = memoryview(bytearray(_ROOM)), bytes(sizes.reply), bytes(sizes.request), _Countdown()
    made = served.expect(max(ROUNDS_PER_STAGE))
    server = await asyncio.get_running_loop().create_server(lambda: _Echo(room, reply, served), "127.0.0.1", 0)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(max(ROUNDS_PER_STAGE))]
    await made
    for count in ROUNDS_PER_STAGE:
        for _ in range(TURNS_A_ROUND):
            end = served.expect(count)
            _send(clients[:count], request)
            begin = time.perf_counter()
            await end
            await asyncio.sleep(0)  # the loop writes at the end of its turn
            best.note("loop", count, time.perf_counter() - begin)
            _receive(clients[:count], len(reply))
    for each in clients:
        each.close()
    server.close()
    await server.wait_closed()


def _send(clients: list[socket.socket], request: bytes) -> None:
    for each in clients:
        each.sendall(request)


def _receive(clients: list[socket.socket], size: int) -> None:
    for each in clients:
        each.recv(size, socket.MSG_WAITALL)
