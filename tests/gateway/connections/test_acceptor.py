"""Acceptor: many connections per iteration, none lost, all with the same socket options."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import uvloop

from mmsup.gateway.connections.acceptor import EXTRA_ACCEPTS, ConnectionAcceptor


class _AcceptedConnection(asyncio.Protocol):
    """Reports that it was accepted."""

    def __init__(self, accepted: list[_AcceptedConnection]) -> None:
        self._accepted = accepted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._accepted.append(self)


class _AcceptorHarness:
    """A listening socket with an acceptor behind it."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.accepted: list[_AcceptedConnection] = []
        self.acceptor = ConnectionAcceptor(self.sock, lambda: _AcceptedConnection(self.accepted))

    @contextlib.contextmanager
    def clients(self, count: int) -> Iterator[list[socket.socket]]:
        """Connected clients."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(socket.create_connection(self.sock.getsockname())) for _ in range(count)]

    async def iterations_until_accepted(self, count: int, limit: int) -> int:
        """The number of loop iterations until so many are accepted."""
        iteration = 0
        while len(self.accepted) < count and iteration < limit:
            iteration += 1
            await asyncio.sleep(0)
        return iteration


def with_acceptor(test: Callable[[_AcceptorHarness], Awaitable[None]]) -> None:
    """Run a test in the event loop of a gateway."""

    async def run() -> None:
        harness = _AcceptorHarness()
        try:
            await test(harness)
        finally:
            harness.acceptor.close()
            for connection in harness.accepted:
                connection.transport.abort()

    uvloop.run(run())


def test_a_client_behind_many_others_is_accepted_within_few_iterations() -> None:
    async def test(harness: _AcceptorHarness) -> None:
        with harness.clients(256):
            await harness.acceptor.start()
            iterations = await harness.iterations_until_accepted(256, 1000)
        assert len(harness.accepted) == 256
        assert iterations < 4 * 256 / EXTRA_ACCEPTS, f"{iterations} iterations for 256 connections"

    with_acceptor(test)


def test_all_accepted_connections_have_the_same_socket_options() -> None:
    async def test(harness: _AcceptorHarness) -> None:
        with harness.clients(3) as clients:
            await harness.acceptor.start()
            await harness.iterations_until_accepted(3, 1000)
            settings = {_settings(connection) for connection in harness.accepted}
            assert settings == {(1, 0.0, 65536)}
            assert {connection.transport.get_extra_info("peername") for connection in harness.accepted} == {
                client.getsockname() for client in clients
            }

    with_acceptor(test)


def _settings(connection: _AcceptedConnection) -> tuple[int, float | None, int]:
    sock = connection.transport.get_extra_info("socket")
    _, high = connection.transport.get_write_buffer_limits()
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), sock.gettimeout(), high


def test_a_client_that_left_while_waiting_does_not_block_others() -> None:
    async def test(harness: _AcceptorHarness) -> None:
        with harness.clients(3) as clients:
            clients[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            clients[1].close()  # a reset
            await harness.acceptor.start()
            wanted = {clients[0].getsockname(), clients[2].getsockname()}
            for _ in range(1000):
                if wanted <= {connection.transport.get_extra_info("peername") for connection in harness.accepted}:
                    return
                await asyncio.sleep(0)
        raise AssertionError("somebody was not accepted")

    with_acceptor(test)


def test_no_connection_is_accepted_after_close() -> None:
    async def test(harness: _AcceptorHarness) -> None:
        await harness.acceptor.start()
        with harness.clients(EXTRA_ACCEPTS * 4):
            await harness.iterations_until_accepted(1, 1000)
            harness.acceptor.close()
            harness.acceptor.close()  # twice is once
            accepted = len(harness.accepted)
            await harness.iterations_until_accepted(EXTRA_ACCEPTS * 4, 200)
            assert len(harness.accepted) <= accepted + EXTRA_ACCEPTS + 1, (
                "the rest goes to whoever else has the listener"
            )

    with_acceptor(test)
