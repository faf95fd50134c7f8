"""The control socket: JSON lines for the command line, on a listener that the keeper holds.

    ▶ {"verb": "load", "arguments": {"name": "bert"}}
    ◀ {"progress": "version 1: importing onnxruntime"}          any number
    ◀ {"ok": true, "result": …}                                 or
    ◀ {"ok": false, "code": …, "error": text, "retryable": …}

A connection may give one command after another. Its peer must be root or the server's own user: the kernel says who
it is, whatever the mode of the file. Connections, lines, idle time and unsent data are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.supervisor.api.handlers import Json, SendLine

LINE_LIMIT: Final = 1 << 20
CONNECTIONS: Final = 64
IDLE_S: Final = 60.0
"""Between two commands; while one is carried out the connection may be silent for any time."""
UNSENT_LIMIT_BYTES: Final = 8 << 20
"""Of progress lines that a slow reader has not read; beyond it the connection is closed."""
SEND_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")

HandleCommand = Callable[[str, Json, SendLine], Awaitable[Any]]
"""Gets verb and arguments; the result is JSON, or MmsupError."""


class ControlSocket:
    def __init__(self, handle: HandleCommand) -> None:
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Serve connections of this listener. An earlier one is closed; its connections stay."""
        listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        earlier = self._server
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LINE_LIMIT)
        if earlier is not None:
            earlier.close()

    async def close(self) -> None:
        """Close all connections. The listener's file stays: it is the keeper's."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="control session")
        self._sessions.add(session)
        session.add_done_callback(self._sessions.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = _Session(self._handle, reader, writer)
        try:
            refusal = self._refusal(writer.get_extra_info("socket"))
            if refusal is not None:
                await session.send(error_line(refusal))
                return
            while await session.serve_one():
                pass
        except (ConnectionError, TimeoutError):
            pass  # it has left, or does not read
        finally:
            await session.close()

    def _refusal(self, peer: socket.socket) -> MmsupError | None:
        _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (0, os.geteuid()):
            return CallerError("forbidden", "the control socket is for root and the server's own user")
        if len(self._sessions) > CONNECTIONS:
            return ServerError("unavailable", f"{CONNECTIONS} command lines are connected already")
        return None


class _Session:
    """One connection. The next line is read ahead, so that the close of a follower's connection is noticed."""

    def __init__(self, handle: HandleCommand, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handle_command = handle
        self._reader = reader
        self._writer = writer
        self._ahead: asyncio.Task[bytes] | None = None

    async def serve_one(self) -> bool:
        """Serve one command; False when there are no more."""
        try:
            async with asyncio.timeout(IDLE_S):
                line = await self._read_ahead()
            self._ahead = None
        except ValueError:
            await self.send(error_line(CallerError("too_large", f"a line exceeds {LINE_LIMIT} bytes")))
            return False
        if not line.endswith(b"\n"):
            return False
        try:
            verb, arguments = _parse_command(line)
        except CallerError as error:
            await self.send(error_line(error))
            return True
        last_line = await self._handle(verb, arguments)
        if last_line is not None:
            await self.send(last_line)
        return last_line is not None

    async def send(self, line: Json) -> None:
        """Send a line and wait until it is sent; TimeoutError if that takes too long."""
        self._writer.write(_line(line))
        async with asyncio.timeout(SEND_S):
            await self._writer.drain()

    async def close(self) -> None:
        """Close the connection; unsent data is dropped."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        self._writer.close()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _read_ahead(self) -> asyncio.Task[bytes]:
        if self._ahead is None:
            self._ahead = asyncio.get_running_loop().create_task(self._reader.readline(), name="control line")
        return self._ahead

    async def _handle(self, verb: str, arguments: Json) -> Json | None:
        """The last line; None if a follower has left. Others get it also if they have closed their sending side."""
        handling = asyncio.ensure_future(self._handle_command(verb, arguments, self._send_progress))
        try:
            if arguments.get("follow"):
                await asyncio.wait((handling, self._read_ahead()), return_when=asyncio.FIRST_COMPLETED)
                if not handling.done():
                    return None
            return {"ok": True, "result": await handling}
        except MmsupError as error:
            return error_line(error)
        finally:
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)

    def _send_progress(self, line: Json) -> None:
        if self._writer.transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES:
            self._writer.transport.abort()
        elif not self._writer.is_closing():
            self._writer.write(_line(line))


def error_line(error: MmsupError) -> Json:
    return {"ok": False, "code": error.code, "error": error.operator_text, "retryable": error.retryable}


def _parse_command(line: bytes) -> tuple[str, Json]:
    try:
        parsed: Any = json.loads(line)  # JSON from outside, checked below
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise CallerError("bad_request", "a line is one JSON object with 'verb' and 'arguments'")
    command = cast("Json", parsed)
    verb, arguments = command.get("verb"), command.get("arguments", {})
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        raise CallerError("bad_request", "'verb' must be a text and 'arguments' an object")
    return verb, cast("Json", arguments)


def _line(line: Json) -> bytes:
    return json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
