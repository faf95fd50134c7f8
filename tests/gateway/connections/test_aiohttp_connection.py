"""Connections served by aiohttp: malformed and slow heads, idle connections, pipelining."""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp
import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import INFER, X, bare_connection, run_with_session
from mmsup.gateway.connections import aiohttp_connection

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_malformed_http_is_a_400_in_json_and_a_closed_connection(head: bytes) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (reader, writer):
            writer.write(head)
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.split(b" ")[1] == b"400"
            assert json.loads(told.split(b"\r\n\r\n", 1)[1])["code"] == "bad_request"

    run_with_session(test)


def test_a_head_that_arrives_too_slowly_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_connection, "HEAD_S", 0.05)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (reader, writer):
            writer.write(b"GET /v2 HTTP/1.1\r\nHost:")
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.startswith(b"HTTP/1.1 408")
            assert json.loads(told.split(b"\r\n\r\n", 1)[1])["code"] == "body_timeout"

    run_with_session(test)


def test_an_idle_connection_between_requests_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_connection, "HEAD_S", 0.02)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async def wait() -> None:
            """Three times as long as a head may take."""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.06)

        backend.before_infer = wait  # type: ignore[method-assign] # the hook that the double is made for
        async with bare_connection(session) as (reader, writer):
            body = json.dumps({"inputs": [X]}).encode()
            head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
            for _again in range(2):
                writer.write(head + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                told = await reader.readuntil(b"\r\n\r\n")
                length = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)

    run_with_session(test)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (reader, writer):
            one = b"GET /v2/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
            last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            writer.write(one * 50 + last)
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.count(b'{"models":["m"]}') == 50
            assert told.endswith(b'{"live":true}')

    run_with_session(test)


def test_aiohttp_is_the_pinned_version_whose_private_names_are_used() -> None:
    assert aiohttp.__version__.startswith("3.14.")
