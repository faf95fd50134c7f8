"""A control socket with answers from a test, in place of a server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

Request = dict[str, Any]  # JSON
Answer = Callable[[Request], Iterable[object]]
CUT = object()
"""In an answer: close the connection here."""


class ControlDouble:
    """Listens at `directory/control.sock`; `answer` returns the lines for each request (bytes are sent unchanged).

    `requests` holds the received ones. Its one thread ends with the `with` block.
    """

    def __init__(self, directory: Path, answer: Answer) -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / "control.sock"))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> ControlDouble:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if line:
                    self._reply(connection, json.loads(line))

    def _reply(self, connection: socket.socket, request: Request) -> None:
        self.requests.append(request)
        for each in self._answer(request):
            if each is CUT:
                return
            data = each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n"
            try:
                connection.sendall(data)
            except OSError:
                return


def done(result: object) -> dict[str, object]:
    """The last line of a command that succeeded."""
    return {"ok": True, "result": result}


def refused(code: str, text: str) -> dict[str, object]:
    """The last line of a command that failed."""
    return {"ok": False, "code": code, "error": text, "retryable": False}
