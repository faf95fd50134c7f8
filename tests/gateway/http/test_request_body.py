"""Request bodies over real sockets: compression, chunks, limits on bytes and time."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import (
    INFER,
    X,
    bare_connection,
    binary_body,
    blobs_of,
    json_of,
    make_router,
    run_with_session,
)
from mmsup.gateway.connections import connection_state
from mmsup.gateway.http import request_body
from mmsup.gateway.protocol.binary_tensors import HEADER

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_compressed_body_is_read(coding: str, chunked: bool) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        data = struct.pack("<40000f", *range(40000))
        plain, headers = binary_body([("X", "FP32", [40000], data)])
        body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1000):
                yield body[at : at + 1000]

        sent = pieces() if chunked else body
        async with session.post(INFER, data=sent, headers={**headers, "Content-Encoding": coding}) as response:
            assert (await blobs_of(response))["X_out"] == data

    run_with_session(test)


def test_a_chunked_body_is_read_to_its_end() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for byte in json.dumps({"inputs": [X]}).encode():
                yield bytes([byte])

        async with session.post(INFER, data=pieces()) as response:
            assert response.status == 200

    run_with_session(test)


@pytest.mark.parametrize(
    ("headers", "body", "status", "says"),
    [
        ({}, b"", 400, "the document is empty"),
        ({}, b"{", 400, "failed to parse the request JSON buffer"),
        ({HEADER: "-1"}, b"{}", 400, "no number of bytes"),
        ({HEADER: "3"}, b"{}", 400, "is 3, but the body has 2 bytes"),
        ({HEADER: "99999999999999999999999"}, b"{}", 400, "no number of bytes"),
        ({"Content-Encoding": "br"}, b"{}", 415, "use gzip or deflate"),
        ({"Content-Encoding": "gzip, gzip"}, b"{}", 415, "use gzip or deflate"),
        ({"Content-Encoding": "gzip"}, b"{}", 400, "is not gzip"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0)[:-4], 400, "cut off"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0) + b"x", 400, "something follows"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "application/python-pickle"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "text/xml"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b'{"inputs":[]}', 400, "expected 1 inputs"),
    ],
)
def test_an_unreadable_body_is_a_caller_error(headers: dict[str, str], body: bytes, status: int, says: str) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, data=body, headers=headers) as response:
            told = await json_of(response)
            assert response.status == status
            assert says in told["error"]
        assert backend.calls == []

    run_with_session(test)


def test_a_body_over_the_limit_is_refused_by_its_head() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, data=bytes(2000)) as response:
            assert response.status == 413
            assert "2000 bytes exceeds the maximum allowed 1000 bytes" in (await json_of(response))["error"]
            assert response.headers["Connection"] == "close"

    run_with_session(test, make_router(max_body_bytes=1000))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_inflating_stops_at_the_limit(coding: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        bomb = gzip.compress(bytes(64 << 20)) if coding == "gzip" else zlib.compress(bytes(64 << 20))
        async with session.post(INFER, data=bomb, headers={"Content-Encoding": coding}) as response:
            assert response.status == 413

    run_with_session(test, make_router(max_body_bytes=1 << 20))


def test_chunks_without_end_are_refused_at_the_limit() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _piece in range(40):
                yield bytes(1000)

        async with session.post(INFER, data=pieces()) as response:
            assert response.status == 413

    run_with_session(test, make_router(max_body_bytes=10_000))


def test_100_continue_is_sent_only_for_a_valid_head() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        body = json.dumps({"inputs": [X]}).encode()
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        async with bare_connection(session) as (reader, writer):
            writer.write(head % (INFER.encode(), len(body)))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with bare_connection(session) as (reader, writer):
            writer.write(head % (b"/v2/models/zz/infer", len(body)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")

    run_with_session(test)


def test_a_body_that_stops_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "IDLE_S", 0.05)
    monkeypatch.setattr(connection_state, "LINGER_S", 0.05)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async with bare_connection(session) as (reader, writer):
            writer.write(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc" % INFER.encode())
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.startswith(b"HTTP/1.1 408")
            assert b"Connection: close" in told
        assert backend.unclosed_requests == 0

    run_with_session(test)
