from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mmsup.ipc.errors import ServerError
from mmsup.supervisor.api import control_socket
from mmsup.supervisor.api.control_socket import LINE_LIMIT, ControlSocket
from mmsup.supervisor.api.handlers import SendLine

Json = dict[str, Any]


class Doer:
    """Verbs for tests."""

    def __init__(self) -> None:
        self.followed = asyncio.Event()
        self.left = asyncio.Event()

    async def handle(self, verb: str, arguments: Json, say: SendLine) -> Any:  # JSON
        if verb == "progress":
            say({"progress": "half"})
            return {"done": True}
        if verb == "refuse":
            raise ServerError("unavailable", "not now")
        if verb == "follow":
            self.followed.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        return arguments


Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Doer], Awaitable[None]]


def play(tmp_path: Path, act: Play) -> None:
    async def run() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        doer = Doer()
        server = ControlSocket(doer.handle)
        await server.start(listener)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"), limit=4 * LINE_LIMIT)
        try:
            async with asyncio.timeout(10):
                await act(reader, writer, doer)
        finally:
            writer.close()
            await server.close()

    asyncio.run(run())


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the other side hangs up; it may do so with our bytes unread."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: object) -> Json:
    writer.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    said: Json = json.loads(await reader.readline())
    return said


def test_a_command_has_progress_and_one_last_line(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        assert await ask(reader, writer, {"verb": "progress"}) == {"progress": "half"}
        assert json.loads(await reader.readline()) == {"ok": True, "result": {"done": True}}

    play(tmp_path, act)


def test_one_connection_gives_one_command_after_another(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        for number in range(3):
            said = await ask(reader, writer, {"verb": "echo", "arguments": {"n": number}})
            assert said == {"ok": True, "result": {"n": number}}

    play(tmp_path, act)


def test_an_error_has_its_code_its_text_and_whether_to_retry(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        said = await ask(reader, writer, {"verb": "refuse"})
        assert said == {"ok": False, "code": "unavailable", "error": "not now", "retryable": True}

    play(tmp_path, act)


@pytest.mark.parametrize(
    "line", [b"hello\n", b"[]\n", b'{"verb": 1}\n', b'{"verb": "x", "arguments": 3}\n', b"\xff\n", b"[" * 90000 + b"\n"]
)
def test_a_line_that_is_no_command_is_refused_and_the_next_is_answered(tmp_path: Path, line: bytes) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        assert (await ask(reader, writer, line))["code"] == "bad_request"
        assert (await ask(reader, writer, {"verb": "echo"}))["ok"] is True

    play(tmp_path, act)


def test_a_line_beyond_the_limit_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        assert (await ask(reader, writer, b"x" * (LINE_LIMIT + 10) + b"\n"))["code"] == "too_large"
        assert await _rest(reader) == b""

    play(tmp_path, act)


def test_a_follower_who_leaves_is_noticed(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        writer.write(b'{"verb": "follow", "arguments": {"follow": true}}\n')
        await doer.followed.wait()
        writer.close()
        await doer.left.wait()

    play(tmp_path, act)


def test_one_that_has_closed_its_sending_side_is_still_answered(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        writer.write(b'{"verb": "echo", "arguments": {"n": 1}}\n')
        writer.write_eof()
        assert json.loads(await reader.read()) == {"ok": True, "result": {"n": 1}}

    play(tmp_path, act)


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger:
        def getsockopt(self, *_: int) -> bytes:
            return control_socket._CREDENTIALS.pack(1, os.geteuid() + 4321, 1)

    server = ControlSocket(Doer.__new__(Doer).handle)
    refusal = server._refusal(Stranger())  # type: ignore[arg-type]  # only what the kernel says of it is asked
    assert refusal is not None
    assert refusal.code == "forbidden"


def test_the_stop_of_the_server_ends_every_session(tmp_path: Path) -> None:
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doer: Doer) -> None:
        writer.write(b'{"verb": "follow", "arguments": {"follow": true}}\n')
        await doer.followed.wait()

    play(tmp_path, act)
