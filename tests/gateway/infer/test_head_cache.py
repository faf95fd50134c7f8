"""What is known of heads: only what aiohttp accepted, only as facts, only so much."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.gateway.infer.head_cache import HEAD_LIMIT_BYTES, HeadCache, ParsedHead
from mmsup.gateway.protocol.binary_tensors import HEADER

START = "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"


def of(head: str) -> ParsedHead | None:
    async def run() -> ParsedHead | None:
        return HeadCache(asyncio.get_running_loop()).get(head.encode())

    return asyncio.run(run())


def test_a_plan_says_model_version_and_lengths() -> None:
    plan = of(
        f"POST /v2/models/%6d/versions/3/infer?q HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n{HEADER}: 100\r\n\r\n"
    )
    assert plan is not None
    assert (plan.model, plan.version, plan.layout.size, plan.layout.header) == ("m", "3", 300, 100)
    assert plan.layout.blobs_start % 64 == 0


def test_a_plan_keeps_the_header_that_goes_back() -> None:
    plan = of(START + "Content-Length: 2\r\nx-request-id: a1\r\n\r\n")
    assert plan is not None
    assert plan.echo == {"X-Request-Id": "a1"}


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
        "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n",
    ],
)
def test_what_is_not_of_the_one_simple_kind_has_no_plan(head: str) -> None:
    assert of(head) is None


def test_a_head_is_read_once_and_a_long_one_every_time() -> None:
    async def run() -> None:
        plans = HeadCache(asyncio.get_running_loop())
        short = (START + "Content-Length: 2\r\n\r\n").encode()
        long = (START + f"X: {'a' * HEAD_LIMIT_BYTES}\r\nContent-Length: 2\r\n\r\n").encode()
        assert plans.get(short) is plans.get(short)
        assert plans.get(long) is not None
        assert len(plans) == 1

    asyncio.run(run())
