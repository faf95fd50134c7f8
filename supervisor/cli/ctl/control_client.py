"""Client of the control socket: sends one request, receives progress and the result. Standard library only.

    ▶ {"verb": "load", "arguments": {"name": "bert"}}
    ◀ {"progress": "importing onnxruntime"}                     any number
    ◀ {"ok": true, "result": …}                                 or
    ◀ {"ok": false, "code": …, "error": text, "retryable": …}

The keeper holds the listening socket: while the controller restarts, clients wait in the socket's queue. If the
controller dies before it has answered, commands that only read are sent again, others are not. The exception is
`upgrade`, which replaces the controller itself: the next one recognises the request by its ticket.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from mmsup.ipc.paths import control_socket

Json = dict[str, Any]  # one line from the server, whose members are checked where they are used
Progress = Callable[[Json], None]

WAIT_S: Final = 10.0
"""How long a request waits for a controller that restarts, which takes under 2 s."""
RETRY_INTERVAL_S: Final = 0.05
"""Between two attempts at a server that closes the connection at once."""
LINE_LIMIT: Final = 32 << 20
"""Above any result of a server."""
READ_ONLY: Final = frozenset({"status", "list", "ps", "show", "logs", "events", "why", "devices"})
"""Commands that change nothing, and may be sent again."""
RESUMABLE: Final = frozenset({"upgrade"})
"""Commands that outlive the controller that received them: they are sent again, with the same ticket, to the next."""


class NoServer(Exception):  # noqa: N818 - an ordinary result
    """No process listens at the control socket, or none has answered in time."""


class ServerRefused(Exception):  # noqa: N818 - the server's own error text and code
    """The server refused the command, or failed to carry it out."""

    def __init__(self, code: str, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retryable = retryable


class _ConnectionCut(Exception):  # noqa: N818
    """The connection ended before the last line."""


def call_server(
    runtime_dir: str,
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    progress: Progress | None = None,
    timeout_s: float | None = WAIT_S,
) -> Any:  # the result, by command
    """Send a command to the server of this runtime directory; its result, or NoServer or ServerRefused.

    `progress` receives every line before the last. `timeout_s` limits the wait for the first line of a command that
    only reads (None for a stream that may stay silent); other commands are waited for without limit.
    """
    path = control_socket(runtime_dir)
    request = json.dumps({"verb": command, "arguments": dict(arguments or {})}).encode() + b"\n"
    end = time.monotonic() + WAIT_S
    while True:
        relay = _ProgressRelay(progress)
        try:
            return _once(path, request, relay, timeout_s if command in READ_ONLY else None)
        except _ConnectionCut:
            if command in RESUMABLE and relay.has_progress:
                end = time.monotonic() + WAIT_S
            elif command not in READ_ONLY | RESUMABLE or relay.has_progress or time.monotonic() > end:
                text = f"the server broke off before it had answered {command}: see `mmsup ctl status` for its state"
                raise ServerRefused("unavailable", text, retryable=True) from None
            time.sleep(RETRY_INTERVAL_S)


class _ProgressRelay:
    """Passes progress lines on, and records whether there was one."""

    def __init__(self, progress: Progress | None) -> None:
        self.has_progress = False
        self._progress = progress

    def __call__(self, line: Json) -> None:
        self.has_progress = True
        if self._progress is not None:
            self._progress(line)


def _once(path: str, request: bytes, relay: _ProgressRelay, timeout_s: float | None) -> Any:  # the result, by command
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, path)
        _set_receive_timeout(sock, timeout_s)
        try:
            sock.sendall(request)
            for line in _lines(sock):
                if "ok" in line:
                    return _result(line)
                relay(line)
                _set_receive_timeout(sock, None)
        except BlockingIOError:
            raise NoServer(f"the server at {path} does not answer") from None
        except (BrokenPipeError, ConnectionResetError):
            raise _ConnectionCut from None
    raise _ConnectionCut


def _connect(sock: socket.socket, path: str) -> None:
    # A blocking connect with SO_SNDTIMEO waits while the queue is full; with Python's own timeout it fails at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(WAIT_S))
    try:
        sock.connect(path)
    except BlockingIOError:
        raise NoServer(f"the server at {path} does not answer") from None
    except PermissionError:
        raise NoServer(f"{path} belongs to another user") from None
    except OSError as error:
        why = "the path is too long for a socket" if "too long" in str(error) else "start one with `mmsup serve`"
        raise NoServer(f"no server at {path}: {why}") from None


def _set_receive_timeout(sock: socket.socket, seconds: float | None) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds or 0.0))


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def _lines(sock: socket.socket) -> Iterator[Json]:
    waiting = bytearray()
    while data := sock.recv(1 << 16):
        waiting += data
        while (end := waiting.find(b"\n")) >= 0:
            yield _parsed(bytes(waiting[:end]))
            del waiting[: end + 1]
        if len(waiting) > LINE_LIMIT:
            raise ServerRefused("internal", "the server's answer is too long")


def _parsed(line: bytes) -> Json:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ServerRefused("internal", "this is not an mmsup server: its line is no JSON object")
    return cast("Json", parsed)


def _result(line: Json) -> Any:  # the result, by command
    if line["ok"] is True:
        return line.get("result")
    code, text = line.get("code"), line.get("error")
    raise ServerRefused(
        str(code or "internal"), str(text or "refused without a reason"), retryable=line.get("retryable") is True
    )
