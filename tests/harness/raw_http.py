"""HTTP over plain sockets, for clients that are slow, malformed, or misstate what they send."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from harness.server import EVENT_S

Address = tuple[str, int]


@contextlib.contextmanager
def connected(address: Address, source: str = "127.0.0.1", receive_bytes: int = 0) -> Iterator[socket.socket]:
    """One connection; optionally from another loopback address and with a small receive buffer."""
    with socket.socket() as made:
        made.settimeout(EVENT_S)
        if receive_bytes:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.bind((source, 0))
        made.connect(address)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield made


@contextlib.contextmanager
def crowd(
    address: Address, count: int, source: str = "127.0.0.2", receive_bytes: int = 0
) -> Iterator[list[socket.socket]]:
    """`count` connections at once."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(address, source, receive_bytes)) for _ in range(count)]


def head(model: str, *lines: str, size: int | None = None) -> bytes:
    """The head of an inference request."""
    given = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost", *lines]
    given += [] if size is None else [f"Content-Length: {size}"]
    return "\r\n".join([*given, "", ""]).encode()


def reply(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """The next reply: its status, and its body if that is a JSON object."""
    told = b""
    while b"\r\n\r\n" not in told:
        got = client.recv(65536)
        if not got:
            raise ConnectionError(f"closed after {told!r}")
        told += got
    top, _, body = told.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", top, re.IGNORECASE)
    size = int(found[1]) if found else 0
    parts, left = [body[:size]], size - len(body)
    while left > 0:
        parts.append(client.recv(min(left, 1 << 20)))
        left -= len(parts[-1])
    body = b"".join(parts)
    value = json.loads(body) if body.startswith(b"{") else {}
    return int(top.split()[1]), value if isinstance(value, dict) else {}


def ask(address: Address, parts: Iterable[bytes]) -> tuple[int, dict[str, Any]]:
    """Send these bytes until the server stops reading, and read one reply."""
    with connected(address) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                client.sendall(part)
        return reply(client)


def is_closed(client: socket.socket) -> bool:
    """Wait for the end of the connection by the server."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True
