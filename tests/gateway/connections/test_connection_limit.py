"""Connection limit: refused over it, unless an idle connection can be evicted."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import INFER, bare_connection, run_with_session
from mmsup.gateway.connections import connection_limit

pytestmark = pytest.mark.usefixtures("loop_factory")


def test_a_connection_over_the_limit_is_refused_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limit, "CONNECTION_LIMIT", 1)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (mine, writer):
            half = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{"
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n" + half.encode())
            assert (await mine.readuntil(b"live")).startswith(b"HTTP/1.1 200")
            async with bare_connection(session) as (reader, _writer):
                assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 503")
            writer.write(b"}")
            assert b"HTTP/1.1 400" in await mine.readuntil(b"HTTP/1.1 400")

    run_with_session(test)


def test_an_idle_connection_is_evicted_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limit, "CONNECTION_LIMIT", 1)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (idle, _idle), session.get("/livez") as response:
            assert response.status == 200
            assert await asyncio.wait_for(idle.read(), 10) == b""

    run_with_session(test)
