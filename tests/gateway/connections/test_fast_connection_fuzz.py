"""The same bytes to a fast connection and to aiohttp alone: the same responses, the connection open or closed alike.

Every case goes whole, cut in two at every byte, and byte by byte. Where a good request and a bad one come in one piece,
aiohttp forgets the good one; how much it forgets depends on where the bytes are cut. There the fast connection
must do what aiohttp does for some way of cutting the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import struct
from collections.abc import Callable

import pytest
import uvloop

from fake_router import FakeRouter, metadata
from fake_transport import Outcome, listener, outcome
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.ipc.errors import ServerError
from mmsup.ipc.memory.counters import CounterTable, make_counter_table

pytestmark = pytest.mark.slow
JSON = json.dumps({"inputs": [{"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}]}).encode()
WORDS = json.dumps(
    {
        "inputs": [{"name": "X", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
BLOB = struct.pack("<2f", 1, 2.5)


def post(
    *lines: str, body: bytes = JSON, target: str = "/v2/models/m/infer", version: str = "1.1", length: str = ""
) -> bytes:
    """A request; `lines` after the host, then its length."""
    given = [
        f"POST {target} HTTP/{version}",
        "Host: localhost",
        *lines,
        f"Content-Length: {length or len(body)}",
        "",
        "",
    ]
    return "\r\n".join(given).encode() + body


def bare(*lines: str, body: bytes = b"") -> bytes:
    """A request of exactly these lines."""
    return "\r\n".join([*lines, "", ""]).encode() + body


GET = bare("GET /livez HTTP/1.1", "Host: localhost")
BINARY = post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB)
CHUNKED = bare(
    "POST /v2/models/m/infer HTTP/1.1",
    "Host: localhost",
    "Transfer-Encoding: chunked",
    body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON),
)
START = ("POST /v2/models/m/infer HTTP/1.1", "Host: localhost")
SIZE = f"Content-Length: {len(JSON)}"
CASES: dict[str, bytes] = {
    "json": post(),
    "binary": BINARY,
    "raw": post(f"{HEADER}: 0", body=BLOB),
    "versioned": post(target="/v2/models/m/versions/1/infer"),
    "echo": post("X-Request-Id: abc"),
    "id": post(body=JSON[:-1] + b', "id": "7"}'),
    "empty": post(body=b""),
    "two": post() + post("X-Request-Id: 2"),
    "mixed": post() + GET + BINARY + CHUNKED + post(),
    "slow first": GET + post() + GET,
    "chunked first": CHUNKED + post(),
    "not json": post(body=b"{" * 9),
    "wrong shape": post(body=JSON.replace(b"[2]", b"[3]")),
    "then good": post(body=b"{}") + post(),
    "unknown model": post(target="/v2/models/zz/infer") + post(),
    "unknown version": post(target="/v2/models/m/versions/9/infer"),
    "bad version": post(target="/v2/models/m/versions/x/infer"),
    "percent": post(target="/v2/models/%6d/infer"),
    "percent slash": post(target="/v2/models/m%2finfer"),
    "percent null": post(target="/v2/models/m%00/infer"),
    "double slash": post(target="//v2/models/m/infer"),
    "double slash within": post(target="/v2/models//m/infer"),
    "query": post(target="/v2/models/m/infer?a=b"),
    "fragment": post(target="/v2/models/m/infer#a"),
    "absolute": post(target="http://localhost/v2/models/m/infer"),
    "dots": post(target="/v2/models/../models/m/infer"),
    "bad name": post(target="/v2/models/-/infer"),
    "no host": bare("POST /v2/models/m/infer HTTP/1.1", SIZE, body=JSON),
    "two hosts": post("Host: y"),
    "length twice": post(SIZE),
    "length twice, other": post("Content-Length: 1"),
    "length list": bare(*START, f"Content-Length: {len(JSON)}, {len(JSON)}", body=JSON),
    "length plus": bare(*START, f"Content-Length: +{len(JSON)}", body=JSON),
    "length minus": bare(*START, "Content-Length: -1", body=JSON),
    "length hex": bare(*START, f"Content-Length: {len(JSON):#x}", body=JSON),
    "length huge": bare(*START, "Content-Length: 99999999999999999999999999", body=JSON),
    "length too large": bare(*START, "Content-Length: 99999999", body=JSON),
    "length spaced": bare(*START, f"Content-Length:   {len(JSON)}  ", body=JSON),
    "length padded": bare(*START, f"Content-Length: 000{len(JSON)}", body=JSON),
    "length empty": bare(*START, "Content-Length:", body=JSON),
    "length underscore": bare(*START, "Content-Length: 1_0", body=JSON),
    "length too small": post(length="5"),
    "no length": bare(*START, body=JSON),
    "length and chunked": bare(*START, SIZE, "Transfer-Encoding: chunked", body=JSON),
    "chunked and length": bare(*START, "Transfer-Encoding: chunked", SIZE, body=JSON),
    "chunked twice": bare(*START, "Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "identity": bare(*START, "Transfer-Encoding: identity", SIZE, body=JSON),
    "coding": post("Content-Encoding: br"),
    "coding identity": post("Content-Encoding: identity"),
    "expect": post("Expect: 100-continue"),
    "expect other": post("Expect: x"),
    "upgrade": post("Connection: upgrade", "Upgrade: websocket"),
    "upgrade h2c": post("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    "close": post("Connection: close") + post(),
    "keep-alive": post("Connection: keep-alive") + post(),
    "connection other": post("Connection: x") + post(),
    "http/1.0": post(version="1.0") + post(),
    "http/1.0 kept": post("Connection: keep-alive", version="1.0") + post(),
    "http/1.2": post(version="1.2"),
    "http/2.0": post(version="2.0"),
    "http/1": post(version="1"),
    "lower method": post().replace(b"POST", b"post"),
    "put": post().replace(b"POST", b"PUT"),
    "folded": post("X-A: b", " c"),
    "folded tab": post("X-A: b", "\tc"),
    "bare newlines": post().replace(b"\r\n", b"\n"),
    "a bare newline": post("X-A: b\nX-B: c"),
    "a bare return": post("X-A: b\rX-B: c"),
    "head ends early": post("X-A: b\n\nX-B: c"),
    "null": post("X-A: b\0c"),
    "null in name": post("X\0A: b"),
    "space before colon": post("X-A : b"),
    "no colon": post("XA"),
    "no name": post(": b"),
    "space in front": post(" X-A: b"),
    "high bytes": post("X-A: \u00e9"),
    "blank lines first": b"\r\n\r\n" + post(),
    "newline first": b"\n" + post(),
    "blank lines between": post() + b"\r\n\r\n" + post(),
    "garbage": b"GARBAGE\r\n\r\n",
    "garbage after": post() + b"GARBAGE\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "foreign type": post("Content-Type: text/xml"),
    "form type": post("Content-Type: multipart/form-data; boundary=x"),
    "header length minus": post(f"{HEADER}: -1"),
    "header length too large": post(f"{HEADER}: 999"),
    "header length text": post(f"{HEADER}: x"),
    "header length twice": post(f"{HEADER}: 2", f"{HEADER}: 2"),
    "header length huge": post(f"{HEADER}: 99999999999999999999999"),
    "blob too short": post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB[:4]),
    "blob too long": post(f"{HEADER}: {len(WORDS)}", body=WORDS + BLOB + b"x"),
    "cut in the body": post()[:-3],
    "cut in the head": post()[:40],
    "smuggled": post(length="4", body=b"null" + GET),
    "body is a request": post(body=GET),
    "body ends blank": post(body=JSON + b"\r\n\r\n") + post(),
    "get with a body": bare("GET /livez HTTP/1.1", "Host: localhost", "Content-Length: 4", body=b"abcd") + post(),
    "control": bare("POST /v2/repository/index HTTP/1.1", "Host: localhost", "Content-Length: 2", body=b"{}") + post(),
    "options": bare("OPTIONS /v2/models/m/infer HTTP/1.1", "Host: localhost") + post(),
    "head": bare("HEAD /v2/models/m/infer HTTP/1.1", "Host: localhost"),
    "delete": bare("DELETE /v2/models/m/infer HTTP/1.1", "Host: localhost") + post(),
    "long header": post("X-A: " + "b" * 9000),
    "many headers": post(*[f"X-{each}: a" for each in range(200)]),
}


def house() -> FakeRouter:
    made = FakeRouter(max_body_bytes=4096)
    made.serve("m", metadata(("X", "FP32", (-1,))))
    made.answers["index"] = []
    return made


def cuts(data: bytes, rng: random.Random) -> list[list[bytes]]:
    """Ways to cut some bytes: all of the short, some of the long."""
    places = range(1, len(data))
    chosen = places if len(data) <= LIMIT else sorted(rng.sample(places, LIMIT))
    single = [data[at : at + 1] for at in range(len(data))] if len(data) <= LIMIT else []
    three = [sorted(rng.sample(places, 2)) for _ in range(20)]
    return [
        [data],
        *[[data[:at], data[at:]] for at in chosen],
        *([single] if single else []),
        *[[data[:first], data[first:second], data[second:]] for first, second in three],
    ]


def finer(pieces: list[bytes]) -> list[bytes]:
    """The same, cut behind blank lines as well."""
    return [part for each in pieces for part in re.split(rb"(?<=\r\n\r\n)", each) if part]


LIMIT = int(os.environ.get("MMSUP_TEST_CUTS", "400"))
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def compare(data: bytes, backend: Callable[[], FakeRouter], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Send it both ways, in all ways of cutting it."""

    async def run() -> None:
        made, fd = backend(), make_counter_table()
        fast, plain = (listener(made, CounterTable(fd), fast=each) for each in (True, False))
        try:
            ways = cuts(data, random.Random(len(data)))
            other: list[tuple[list[bytes], Outcome]] = []
            right: set[Outcome] = set()
            for pieces in ways:
                expected = await outcome(plain, pieces)
                right |= {expected, await outcome(plain, finer(pieces))}
                got = await outcome(fast, pieces)
                if got != expected:
                    other.append((pieces, got))
            for pieces, got in other:
                assert got in right, (pieces, got, right)
            assert made.unclosed_requests == 0
        finally:
            for each in (fast, plain):
                each.pre_shutdown()
                await each.shutdown(0.1)
            made.threads.shutdown()
            os.close(fd)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("case", CASES)
def test_a_fast_connection_treats_all_inputs_as_aiohttp_does(
    case: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    compare(CASES[case], house, loop)


def test_a_fast_connection_refuses_as_aiohttp_does() -> None:
    def full() -> FakeRouter:
        made = house()
        made.refusal = ServerError("queue_full", "Exceeds maximum queue size", retry_after_s=3)
        return made

    def draining() -> FakeRouter:
        made = house()
        made.refusal = ServerError("draining", "the server is stopping", retry_after_s=5)
        return made

    for backend in (full, draining):
        compare(post() + post(), backend, uvloop.new_event_loop)


def test_random_sequences_of_requests_end_as_with_aiohttp() -> None:
    """Pieces of the corpus, joined, doubled and cut at random."""
    rng = random.Random(7)
    good = [each for each in CASES.values() if len(each) < 600]

    async def run() -> None:
        made, fd = house(), make_counter_table()
        fast, plain = (listener(made, CounterTable(fd), fast=each) for each in (True, False))
        try:
            for _ in range(400):
                requests = [rng.choice(good) for _ in range(rng.randint(1, 4))]
                pieces: list[bytes] = []
                for each in requests:
                    at = rng.randint(1, len(each) - 1)
                    pieces += [each[:at], each[at:]] if rng.random() < 0.5 else [each]
                got, expected = await outcome(fast, pieces), await outcome(plain, pieces)
                assert got == expected or got == await outcome(plain, finer(pieces)), (pieces, got, expected)
            assert made.unclosed_requests == 0
        finally:
            for made_by in (fast, plain):
                made_by.pre_shutdown()
                await made_by.shutdown(0.1)
            made.threads.shutdown()
            os.close(fd)

    uvloop.run(run())
