"""A client of `generate_stream`, which reads events one by one as a test wants."""

from __future__ import annotations

import http.client
import json
import socket
from types import TracebackType
from typing import Any

from harness.server import EVENT_S, Server

Document = Any  # JSON


class StreamReader:
    def __init__(self, server: Server, path: str, document: Document, *, receive_bytes: int = 0) -> None:
        """`path`: below /v2/models. `receive_bytes`: of the socket's buffer, 0 for the kernel's choice."""
        self._connection = http.client.HTTPConnection(*server.address(), timeout=EVENT_S)
        if receive_bytes:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            sock.settimeout(EVENT_S)
            sock.connect(server.address())
            self._connection.sock = sock
        self._connection.request("POST", f"/v2/models/{path}", json.dumps(document))
        self.response: http.client.HTTPResponse | None = None
        self._received = b""

    @property
    def status(self) -> int:
        if self.response is None:
            self.response = self._connection.getresponse()
        return self.response.status

    def next(self) -> Document:
        """The next event, None at the end. IncompleteRead or OSError if the connection was cut."""
        assert self.status == 200, self.rest()
        while b"\n\n" not in self._received:
            if not (chunk := self._next_chunk()):
                assert not self._received, self._received
                return None
            self._received += chunk
        event, _, self._received = self._received.partition(b"\n\n")
        assert event.startswith(b"data: "), event
        return json.loads(event.removeprefix(b"data: "))

    def _next_chunk(self) -> bytes:
        """By hand: http.client takes a cut for an end where a line is read."""
        assert self.response is not None
        assert self.response.fp is not None
        size = self.response.fp.readline()
        if not size.endswith(b"\n"):
            raise http.client.IncompleteRead(size)
        chunk = self.response.fp.read(int(size, 16) + 2)
        if not chunk.endswith(b"\r\n"):
            raise http.client.IncompleteRead(chunk)
        return chunk[:-2]

    def rest(self) -> bytes:
        assert self.status
        assert self.response is not None
        return self.response.read()

    def until_end(self) -> list[Document]:
        found: list[Document] = []
        while (event := self.next()) is not None:
            found.append(event)
        return found

    def close(self) -> None:
        if self.response is not None:
            self.response.close()
        self._connection.close()

    def __enter__(self) -> StreamReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
