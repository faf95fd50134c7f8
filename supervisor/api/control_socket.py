"""The control socket: JSON lines for the command line, on a listener that the keeper holds.

    ▶ {"verb": "load", "arguments": {"name": "bert"}}
    ◀ {"progress": "version 1: importing onnxruntime"}          any number
    ◀ {"ok": true, "result": …}                                 or
    ◀ {"ok": false, "code": …, "error": text, "retryable": …}

A connection may ask one thing after another. Who connects must be root or the server's own user: the kernel says who
it is, whatever the mode of the file. Everything is bounded: connections, lines, silence, what a slow reader is owed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from typing import Any, Final, Protocol, cast

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.supervisor.api.handlers import SendLine

LINE_LIMIT: Final = 1 << 20
CONNECTIONS: Final = 64
IDLE_S: Final = 60.0
"""Between two questions; a load or a follower may be silent for as long as it likes."""
UNSENT_LIMIT_BYTES: Final = 8 << 20
"""What a reader may leave lying before it is given up."""
SEND_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")

Json = dict[str, Any]  # one JSON object


class CommandHandler(Protocol):
    """Who carries a verb out."""

    async def handle(self, verb: str, arguments: Json, say: SendLine) -> Any:  # the result is JSON, by verb
        """The result, or MmsupError."""
        ...


class ControlSocket:
    """The server of the control socket, from `start` to `close`."""

    def __init__(self, doer: CommandHandler) -> None:
        self._doer = doer
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Answer whoever connects, or waits already. A listener of before is let go; whoever is connected stays so."""
        listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        before = self._server
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=LINE_LIMIT)
        if before is not None:
            before.close()

    async def close(self) -> None:
        """Hang up on everybody. The listener's file stays: it is the keeper's."""
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
        session = _Session(self._doer, reader, writer)
        try:
            refusal = self._refusal(writer.get_extra_info("socket"))
            if refusal is not None:
                await session.send(error_line(refusal))
                return
            while await session.serve_one():
                pass
        except (ConnectionError, TimeoutError):
            pass  # it left, or does not read: nobody is there to be told
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
    """One connection. The next line is read ahead, so that a follower who hangs up is noticed."""

    def __init__(self, doer: CommandHandler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._doer = doer
        self._reader = reader
        self._writer = writer
        self._ahead: asyncio.Task[bytes] | None = None

    async def serve_one(self) -> bool:
        """One question and its answer; False when there are no more."""
        try:
            async with asyncio.timeout(IDLE_S):
                line = await self._next()
        except ValueError:
            await self.send(error_line(CallerError("too_large", f"a line exceeds {LINE_LIMIT} bytes")))
            return False
        if not line.endswith(b"\n"):
            return False
        try:
            verb, arguments = _question(line)
        except CallerError as error:
            await self.send(error_line(error))
            return True
        answer = await self._answer(verb, arguments)
        if answer is not None:
            await self.send(answer)
        return answer is not None

    async def send(self, line: Json) -> None:
        """A line that must get through, or TimeoutError."""
        self._writer.write(_line(line))
        async with asyncio.timeout(SEND_S):
            await self._writer.drain()

    async def close(self) -> None:
        """Hang up; what a reader has left lying is dropped."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        self._writer.close()
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _look_ahead(self) -> asyncio.Task[bytes]:
        if self._ahead is None:
            self._ahead = asyncio.get_running_loop().create_task(self._reader.readline(), name="control line")
        return self._ahead

    async def _next(self) -> bytes:
        line = await self._look_ahead()
        self._ahead = None
        return line

    async def _answer(self, verb: str, arguments: Json) -> Json | None:
        """The last line; None if a follower left. Others are answered also if they have closed their sending side."""
        doing = asyncio.ensure_future(self._doer.handle(verb, arguments, self._say))
        try:
            if arguments.get("follow"):
                await asyncio.wait((doing, self._look_ahead()), return_when=asyncio.FIRST_COMPLETED)
                if not doing.done():
                    return None
            return {"ok": True, "result": await doing}
        except MmsupError as error:
            return error_line(error)
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    def _say(self, line: Json) -> None:
        if self._writer.transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES:
            self._writer.transport.abort()
        elif not self._writer.is_closing():
            self._writer.write(_line(line))


def error_line(error: MmsupError) -> Json:
    """The last line of a question that could not be answered."""
    return {"ok": False, "code": error.code, "error": error.text, "retryable": error.retryable}


def _question(line: bytes) -> tuple[str, Json]:
    try:
        asked: Any = json.loads(line)  # JSON from outside, checked below
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise CallerError("bad_request", "a line is one JSON object with 'verb' and 'arguments'")
    question = cast("Json", asked)
    verb, arguments = question.get("verb"), question.get("arguments", {})
    if not isinstance(verb, str) or not isinstance(arguments, dict):
        raise CallerError("bad_request", "'verb' must be a text and 'arguments' an object")
    return verb, cast("Json", arguments)


def _line(line: Json) -> bytes:
    return json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"
