"""What RFC 9112 leaves to a server, or forbids: one answer by both fronts, at once, and nothing in the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import INFER, X, bare_connection, run_with_session

pytestmark = pytest.mark.usefixtures("loop_factory")
BODY = json.dumps({"inputs": [X]}).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
CLOSE_S = 5.0
"""An answer takes milliseconds; the time limits of bodies are 30 s."""


def request(*lines: str, method: str = "POST", target: str = INFER, version: str = "1.1", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: localhost", *lines, "", ""]).encode() + body


def chunks(data: bytes, size: int = 10) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in parts) + b"0\r\n\r\n"


NEXT = request(method="GET", target="/livez")
LAST = request("Connection: close", method="GET", target="/livez")
CASES: dict[str, tuple[bytes, list[int]]] = {
    "chunks": (request(CHUNKED, body=chunks(BODY)) + LAST, [200, 200]),
    "a chunk that is longer": (request(CHUNKED, body=b"5\r\nabcdeXX\r\n0\r\n\r\n") + NEXT, [400]),
    "a size that is no number": (request(CHUNKED, body=b"zz\r\nabcde\r\n") + NEXT, [400]),
    "a broken last chunk": (request(CHUNKED, body=chunks(BODY)[:-5] + b"zz\r\n") + NEXT, [400]),
    "chunks too small": (request(CHUNKED, body=chunks(BODY + b" " * 100_000, 1)), [400]),
    "another coding": (request("Transfer-Encoding: gzip, chunked", body=chunks(BODY)) + NEXT, [501]),
    "two codings": (request("Transfer-Encoding: gzip", CHUNKED, body=chunks(BODY)) + NEXT, [400]),
    "HTTP/0.9": (request(LENGTH, version="0.9", body=BODY) + NEXT, [505]),
    "HTTP/2.0": (request(LENGTH, version="2.0", body=BODY) + NEXT, [505]),
    "HTTP/2.0 without a body": (request(method="GET", target="/livez", version="2.0") + NEXT, [505]),
    "an upgrade": (request("Connection: upgrade", "Upgrade: websocket", method="GET", target="/livez") + NEXT, [200]),
    "an upgrade with a body": (request(LENGTH, "Connection: upgrade", "Upgrade: h2c", body=BODY) + NEXT, [200]),
    "an upgrade to HTTP/2": (
        request(LENGTH, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", body=BODY)
        + NEXT,
        [200],
    ),
    "behind the last": (request(LENGTH, "Connection: close", body=BODY) + NEXT, [200]),
    "garbage behind the last": (LAST + b"GARBAGE\r\n\r\n", [200]),
    "three and garbage": (NEXT + request(LENGTH, body=BODY) + NEXT + b"GARBAGE\r\n\r\n", [200, 200, 200, 400]),
}


@pytest.mark.parametrize("front", ["fast", "plain"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_both_fronts_answer_alike(case: str, front: str, caplog: pytest.LogCaptureFixture, *, is_cut: bool) -> None:
    sent, statuses = CASES[case]

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (reader, writer), asyncio.timeout(CLOSE_S):
            told = b""
            with contextlib.suppress(ConnectionError):
                middle = len(sent) // 2 if is_cut else 0
                for part in (sent[:middle], sent[middle:]):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                while got := await reader.read(1 << 16):
                    told += got
            assert [int(each) for each in re.findall(rb"HTTP/[0-9.]+ ([0-9]{3}) [A-Z]", told)] == statuses, told

    with caplog.at_level(logging.INFO):
        run_with_session(test, front=front)
    assert not caplog.records


@pytest.mark.parametrize("front", ["fast", "plain"])
def test_a_client_that_leaves_after_expect_is_no_bug(front: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (_reader, writer):
            writer.write(request(LENGTH, "Expect: 100-continue"))
            writer.transport.abort()
        async with session.get("/livez") as response:
            assert response.status == 200

    with caplog.at_level(logging.INFO):
        run_with_session(test, front=front)
    assert not caplog.records
