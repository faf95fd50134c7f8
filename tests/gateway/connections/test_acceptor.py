"""Taking in who comes to a listening socket: many at a turn, none lost, all with the same settings."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import uvloop

from mmsup.gateway.connections.acceptor import EXTRA_ACCEPTS, ConnectionAcceptor


class _Guest(asyncio.Protocol):
    """Says how it was met."""

    def __init__(self, met: list[_Guest]) -> None:
        self._met = met

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._met.append(self)


class _Door:
    """A listening socket with an acceptor behind it."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.met: list[_Guest] = []
        self.acceptor = ConnectionAcceptor(self.sock, lambda: _Guest(self.met))

    @contextlib.contextmanager
    def clients(self, count: int) -> Iterator[list[socket.socket]]:
        """So many who have connected."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(socket.create_connection(self.sock.getsockname())) for _ in range(count)]

    async def turns_until_met(self, count: int, limit: int) -> int:
        """How many turns of the loop it takes until that many are met."""
        turn = 0
        while len(self.met) < count and turn < limit:
            turn += 1
            await asyncio.sleep(0)
        return turn


def at_door(test: Callable[[_Door], Awaitable[None]]) -> None:
    """Run a test in a gateway's kind of loop."""

    async def run() -> None:
        door = _Door()
        try:
            await test(door)
        finally:
            door.acceptor.close()
            for guest in door.met:
                guest.transport.abort()

    uvloop.run(run())


def test_who_comes_behind_a_crowd_is_met_after_few_turns() -> None:
    async def test(door: _Door) -> None:
        with door.clients(256):
            await door.acceptor.start()
            turns = await door.turns_until_met(256, 1000)
        assert len(door.met) == 256
        assert turns < 4 * 256 / EXTRA_ACCEPTS, f"{turns} turns for 256 connections"

    at_door(test)


def test_the_first_and_those_behind_it_have_the_same_settings() -> None:
    async def test(door: _Door) -> None:
        with door.clients(3) as clients:
            await door.acceptor.start()
            await door.turns_until_met(3, 1000)
            settings = {_settings(guest) for guest in door.met}
            assert settings == {(1, 0.0, 65536)}
            assert {guest.transport.get_extra_info("peername") for guest in door.met} == {
                client.getsockname() for client in clients
            }

    at_door(test)


def _settings(guest: _Guest) -> tuple[int, float | None, int]:
    sock = guest.transport.get_extra_info("socket")
    _, high = guest.transport.get_write_buffer_limits()
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), sock.gettimeout(), high


def test_who_left_while_waiting_keeps_nobody_out() -> None:
    async def test(door: _Door) -> None:
        with door.clients(3) as clients:
            clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            clients[1].close()  # a reset
            await door.acceptor.start()
            wanted = {clients[0].getsockname(), clients[2].getsockname()}
            for _ in range(1000):
                if wanted <= {guest.transport.get_extra_info("peername") for guest in door.met}:
                    return
                await asyncio.sleep(0)
        raise AssertionError("somebody was not met")

    at_door(test)


def test_nobody_is_met_after_the_end() -> None:
    async def test(door: _Door) -> None:
        await door.acceptor.start()
        with door.clients(EXTRA_ACCEPTS * 4):
            await door.turns_until_met(1, 1000)
            door.acceptor.close()
            door.acceptor.close()  # twice is once
            met = len(door.met)
            await door.turns_until_met(EXTRA_ACCEPTS * 4, 200)
            assert len(door.met) <= met + EXTRA_ACCEPTS + 1, "the rest goes to whoever else has the listener"

    at_door(test)
