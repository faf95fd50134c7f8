"""Only heads that aiohttp accepts are cached, only as facts, and only short ones."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.gateway.infer.head_cache import HEAD_LIMIT_BYTES, HeadCache, ParsedHead, cut_lines
from mmsup.gateway.protocol.binary_tensors import HEADER

START = "POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\n"


def find(*texts: str) -> list[tuple[ParsedHead, str] | None]:
    """What one cache says of each."""

    async def run() -> list[tuple[ParsedHead, str] | None]:
        cache = HeadCache(asyncio.get_running_loop())
        return [cache.get(each.encode()) for each in texts]

    return asyncio.run(run())


def parse(text: str) -> ParsedHead | None:
    (found,) = find(text)
    return None if found is None else found[0]


def test_a_parsed_head_has_model_version_and_lengths() -> None:
    head = parse(
        "POST /v2/models/%6d/versions/3/infer?q HTTP/1.1\r\nHost: localhost:80\r\n"
        f"Content-Length: 300\r\n{HEADER}: 100\r\n\r\n"
    )
    assert head is not None
    assert head.host == "localhost"
    assert (head.model, head.version, head.layout.size, head.layout.header) == ("m", "3", 300, 100)
    assert head.layout.blobs_start % 64 == 0


TRACE = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0{}\r\n"


def with_lines(*lines: str) -> str:
    return START + "".join(lines) + "Content-Length: 2\r\n\r\n"


@pytest.mark.parametrize("line", ["x-request-id: a1\r\n", "X-Request-Id:a1\r\n", "X-REQUEST-ID:  a1 \r\n"])
def test_the_id_that_the_response_repeats_is_that_of_the_head(line: str) -> None:
    assert [found and found[1] for found in find(with_lines(line), with_lines(), with_lines(line))] == ["a1", "", "a1"]


def test_heads_that_differ_in_ids_and_trace_contexts_alone_are_one() -> None:
    found = find(
        with_lines(),
        *(with_lines(TRACE.format(number), f"X-Request-Id: r{number}\r\n") for number in range(3)),
        *(with_lines(f"x-request-id: s{number}\r\n", "Accept: */*\r\n") for number in range(2)),
    )
    assert [each and each[1] for each in found] == ["", "r0", "r1", "r2", "s0", "s1"]
    heads = [each and each[0] for each in found]
    assert heads[0] is heads[1] is heads[2] is heads[3]
    assert heads[4] is heads[5] is not heads[0]


@pytest.mark.parametrize(
    ("lines", "echo_id"),
    [
        (["x-request-id: a\r\n", "x-request-id: b\r\n"], "a"),
        (["x-request-id:b c\r\n", "x-request-id: a\r\n"], ""),
        (["x-request-id: a\r\n", "x-request-id:b c\r\n"], "a"),
        ([f"x-request-id: {'a' * 129}\r\n"], ""),
        ([TRACE.format(1), TRACE.format(2)], ""),
        ([TRACE.format("x")], ""),
        (["X: a\r\n", "x-request-id: a\r\n", "Y: b\r\n"], "a"),
    ],
)
def test_lines_of_another_form_are_left_in_the_head(lines: list[str], echo_id: str) -> None:
    for head in find(with_lines(*lines), with_lines(*lines)):
        assert head is not None
        assert head[1] == echo_id


@pytest.mark.parametrize("line", ["x-request-id: a\r\n", TRACE.format(1)])
def test_a_line_with_a_continuation_is_never_cut_out(line: str) -> None:
    """Else the continuation would be that of the header before."""
    assert (
        cut_lines(with_lines("A: b\r\n", line, " c\r\n").encode())[0] == with_lines("A: b\r\n", line, " c\r\n").encode()
    )
    assert find(with_lines("A: b\r\n", " c\r\n")) == find(with_lines("A: b\r\n", line, " c\r\n")) == [None]


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
        first, second = cache.get(short), cache.get(short)
        assert first is not None
        assert second is not None
        assert first[0] is second[0]
        assert cache.get(long) is not None
        assert len(cache) == 1

    asyncio.run(run())
