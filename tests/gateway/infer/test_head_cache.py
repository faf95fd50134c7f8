"""Only heads that aiohttp accepts are cached, only as facts, and only short ones."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.gateway.infer.head_cache import HEAD_LIMIT_BYTES, HeadCache, ParsedHead
from mmsup.gateway.protocol.binary_tensors import HEADER

START = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"


def parse(text: str) -> ParsedHead | None:
    async def run() -> ParsedHead | None:
        return HeadCache(asyncio.get_running_loop()).get(text.encode())

    return asyncio.run(run())


def test_a_parsed_head_has_model_version_and_lengths() -> None:
    head = parse(
        "POST /v2/models/%6d/versions/3/infer?q HTTP/1.1\r\nHost: localhost:80\r\n"
        f"Content-Length: 300\r\n{HEADER}: 100\r\n\r\n"
    )
    assert head is not None
    assert head.host == "localhost"
    assert (head.model, head.version, head.layout.size, head.layout.header) == ("m", "3", 300, 100)
    assert head.layout.blobs_start % 64 == 0


def test_a_parsed_head_keeps_the_header_that_the_response_repeats() -> None:
    head = parse(START + "Content-Length: 2\r\nx-request-id: a1\r\n\r\n")
    assert head is not None
    assert head.echo == {"X-Request-Id": "a1"}


@pytest.mark.parametrize(
    "head",
    [
        START + "\r\n",
        START + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
        START + "Content-Length: +2\r\n\r\n",
        START + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        START + "Content-Length: 2\r\nContent-Encoding: gzip\r\n\r\n",
        START + "Content-Length: 2\r\nContent-Encoding: identity\r\n\r\n",
        START + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        START + "Content-Length: 2\r\nUpgrade: x\r\n\r\n",
        START + "Content-Length: 2\r\nConnection: close\r\n\r\n",
        START + "Content-Length: 2\r\nContent-Type: text/xml\r\n\r\n",
        START + f"Content-Length: 2\r\n{HEADER}: 3\r\n\r\n",
        START + f"Content-Length: 2\r\n{HEADER}: 1\r\n{HEADER}: 1\r\n\r\n",
        START + "Content-Length: 2\r\nX: a\n\nGET / HTTP/1.1\r\n\r\n",
        START + "Content-Length: 2\r\nX : a\r\n\r\n",
        START.replace("HTTP/1.1", "HTTP/1.0") + "Content-Length: 2\r\n\r\n",
        START.replace("infer", "generate") + "Content-Length: 2\r\n\r\n",
        START.replace("models/m", "models/-") + "Content-Length: 2\r\n\r\n",
        "\r\n" + START + "Content-Length: 2\r\n\r\n",
        "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_a_head_that_is_not_of_the_simple_kind_is_left_to_aiohttp(head: str) -> None:
    assert parse(head) is None


def test_a_head_is_parsed_once_and_a_long_one_every_time() -> None:
    async def run() -> None:
        cache = HeadCache(asyncio.get_running_loop())
        short = (START + "Content-Length: 2\r\n\r\n").encode()
        long = (START + f"X: {'a' * HEAD_LIMIT_BYTES}\r\nContent-Length: 2\r\n\r\n").encode()
        assert cache.get(short) is cache.get(short)
        assert cache.get(long) is not None
        assert len(cache) == 1

    asyncio.run(run())
