"""The clients against servers of a few lines: what they do when a server is slow, busy, gone or talks nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mmsup.client import AsyncClient, Client, ClientError, ConnectionFailed, InvalidReply, ServerRefused, TimedOut

LIVE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b'HTTP/1.1 503 Busy\r\nContent-Length: 59\r\n\r\n{"error": "full", "code": "queue_full", "retryable": true }'
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


class Script:
    """Answers the requests to it with these bytes, in turn; None closes the connection instead."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self.connections = self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, name="script")
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                self.requests += 1
                answer = self._answers.pop(0)
                if answer is None:
                    break
                connection.sendall(answer)
                if b"Connection: close" in answer:
                    break
        with contextlib.suppress(OSError):
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for each in self._open:
            each.close()
        self._listener.close()


@contextlib.contextmanager
def script(*answers: bytes | None) -> Iterator[Script]:
    made = Script(*answers)
    try:
        yield made
    finally:
        made.close()


def with_sync(address: str, retries: int, timeout_s: float) -> bool:
    with Client(address, retries=retries, timeout_s=timeout_s) as client:
        return bool(client.document("/v2") == {})


def with_async(address: str, retries: int, timeout_s: float) -> bool:
    async def ask() -> bool:
        async with AsyncClient(address, retries=retries, timeout_s=timeout_s) as client:
            return bool(await client.document("/v2") == {})

    return asyncio.run(ask())


Ask = Callable[[str, int, float], bool]
both = pytest.mark.parametrize("ask", [with_sync, with_async], ids=["sync", "async"])


@both
def test_a_busy_server_is_asked_again_if_wanted(ask: Ask) -> None:
    with script(BUSY, BUSY, LIVE) as server:
        assert ask(server.address, 2, 20)
        assert (server.connections, server.requests) == (1, 3)
    with script(BUSY, LIVE) as server:
        with pytest.raises(ServerRefused, match="full"):
            ask(server.address, 0, 20)
        assert server.requests == 1


@both
def test_a_connection_that_ends_is_an_error_that_may_be_tried_again(ask: Ask) -> None:
    with script(None, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf", LIVE) as server:
        with pytest.raises(ConnectionFailed) as caught:
            ask(server.address, 0, 20)
        assert caught.value.retryable
        assert caught.value.was_sent
        assert ask(server.address, 1, 20)


@both
def test_nobody_there_is_an_error_and_not_a_wait(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConnectionFailed, match="no connection to 127"):
        ask(address, 0, 20)


@both
def test_a_server_that_does_not_answer_is_waited_for_as_long_as_was_said(ask: Ask) -> None:
    with script(b"HTTP/1.1 200 OK\r\n") as server, pytest.raises(TimedOut):
        ask(server.address, 3, 0.05)


@both
@pytest.mark.parametrize("nonsense", [b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{"])
def test_nonsense_is_an_error_of_its_own(ask: Ask, nonsense: bytes) -> None:
    with script(nonsense) as server, pytest.raises(InvalidReply):
        ask(server.address, 3, 20)


def test_connections_are_kept_and_those_that_the_server_closed_are_not_used() -> None:
    with script(LIVE, LIVE, CLOSING, LIVE) as server, Client(server.address) as client:
        for _ in range(4):
            assert client.document("/v2") == {}
        assert (server.connections, server.requests) == (2, 4)


def test_an_error_says_which_model() -> None:
    with script(None) as server, Client(server.address) as client, pytest.raises(ClientError) as caught:
        client.infer("m", {"x": np.zeros(1)})
    assert caught.value.model == "m"
