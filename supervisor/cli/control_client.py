"""The other end of the control socket: one request, its progress, its result. Standard library only.

    ▶ {"verb": "load", "arguments": {"name": "bert"}}
    ◀ {"progress": "importing onnxruntime"}                     any number
    ◀ {"ok": true, "result": …}                                 or
    ◀ {"ok": false, "code": …, "error": text, "retryable": …}

The keeper holds the listening socket: while the brain comes back, a caller waits in its queue and is answered by the
next brain. What only reads is asked again where a brain died before it answered; what changes something is not.
An upgrade is the exception: it changes brains itself, and is known to the next one by its ticket.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from mmsup.ipc.paths import control_socket

Json = dict[str, Any]  # one line of the server's, whose members the caller checks where it draws them
Progress = Callable[[Json], None]

WAIT_S: Final = 10.0
"""How long a question waits for a brain that is being restarted; it takes under 2 s."""
RETRY_INTERVAL_S: Final = 0.05
"""Between two attempts at a server that hangs up at once."""
LINE_LIMIT: Final = 32 << 20
"""Above any result; a server that sends more is none of ours."""
READ_ONLY: Final = frozenset({"status", "list", "ps", "show", "logs", "events", "why", "devices"})
"""Verbs that change nothing, and may be asked again."""
RESUMABLE: Final = frozenset({"upgrade"})
"""Verbs that outlive the brain that was asked: the next one is asked again, and knows the question by its ticket."""


class NoServer(Exception):  # noqa: N818 - an ordinary answer to `is anybody there`
    """Nobody listens at the control socket, or nobody answered in time."""


class ServerRefused(Exception):  # noqa: N818 - the server's own words, with its code
    """The server refused or failed."""

    def __init__(self, code: str, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.retryable = retryable


class _ConnectionCut(Exception):  # noqa: N818
    """The connection ended before the last line."""


def call_server(
    runtime_dir: str,
    verb: str,
    arguments: Mapping[str, object] | None = None,
    *,
    progress: Progress | None = None,
    timeout_s: float | None = WAIT_S,
) -> Any:  # the result, by verb
    """Ask the server of this runtime directory; its result, NoServer or Refused.

    `progress` gets every line before the last. `silence_s` bounds the wait for an answer (None for a stream that may
    stay silent); what changes something is waited for as long as it takes.
    """
    path = control_socket(runtime_dir)
    request = json.dumps({"verb": verb, "arguments": dict(arguments or {})}).encode() + b"\n"
    end = time.monotonic() + WAIT_S
    while True:
        heard = _ProgressRelay(progress)
        try:
            return _once(path, request, heard, timeout_s if verb in READ_ONLY else None)
        except _ConnectionCut:
            if verb in RESUMABLE and heard.has_progress:
                end = time.monotonic() + WAIT_S
            elif verb not in READ_ONLY | RESUMABLE or heard.has_progress or time.monotonic() > end:
                text = f"the server broke off before it had answered {verb}: `mmsup ctl status` says what holds now"
                raise ServerRefused("unavailable", text, retryable=True) from None
            time.sleep(RETRY_INTERVAL_S)


class _ProgressRelay:
    """Hands progress on, and knows whether there was any."""

    def __init__(self, progress: Progress | None) -> None:
        self.has_progress = False
        self._progress = progress

    def __call__(self, line: Json) -> None:
        self.has_progress = True
        if self._progress is not None:
            self._progress(line)


def _once(path: str, request: bytes, heard: _ProgressRelay, silence_s: float | None) -> Any:  # the result, by verb
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, path)
        _set_receive_timeout(sock, silence_s)
        try:
            sock.sendall(request)
            for line in _lines(sock):
                if "ok" in line:
                    return _result(line)
                heard(line)
                _set_receive_timeout(sock, None)
        except BlockingIOError:
            raise NoServer(f"the server at {path} does not answer") from None
        except (BrokenPipeError, ConnectionResetError):
            raise _ConnectionCut from None
    raise _ConnectionCut


def _connect(sock: socket.socket, path: str) -> None:
    # A blocking connect with SO_SNDTIMEO waits in a full queue; Python's own timeout would fail there at once.
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
            raise ServerRefused("internal", "the server's answer has no end")


def _parsed(line: bytes) -> Json:
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ServerRefused("internal", "what answered is not an mmsup server: its line is no JSON object")
    return cast("Json", parsed)


def _result(line: Json) -> Any:  # the result, by verb
    if line["ok"] is True:
        return line.get("result")
    code, text = line.get("code"), line.get("error")
    raise ServerRefused(
        str(code or "internal"), str(text or "refused without a reason"), retryable=line.get("retryable") is True
    )
