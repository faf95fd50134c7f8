"""Hostile HTTP input: each gets one clear answer in bounded memory and time, and no other client notices."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.build import write_identity_onnx
from harness import raw_http
from harness.bystander import Bystander
from harness.gateway_watch import GatewayWatch
from harness.invariants import assert_clean, assert_gone, server_processes, settled, snapshot
from harness.server import Http, Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
MIB = 1 << 20
WAIT_S = 0.06
"""Most CPU time of the gateway that a small request waits for beside this input; 15 ms are measured."""
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    write_identity_onnx(repository, "m", dims=[-1])
    write_identity_onnx(repository, "whole", "INT64", dims=[-1])
    write_identity_onnx(repository, "one", dims=[1])
    write_identity_onnx(repository, "words", "BYTES", dims=[-1])
    with serving(repository) as running:
        http = Http(running.address())
        for name, datatype in ((BYSTANDER, "FP32"), ("m", "FP32"), ("whole", "INT64")):
            assert http.infer(name, x=(datatype, [5000], [0] * 5000))[0] == 200
        http.close()
        body = numbers(b"0.5", 8 * MIB)
        assert raw_http.ask(running.address(), [raw_http.head("m", size=len(body)), body])[0] == 200
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@contextlib.contextmanager
def unnoticed(
    server: Server, growth_bytes: int, warm: Callable[[], None] = lambda: None, wait_s: float = WAIT_S
) -> Iterator[GatewayWatch]:
    """No other client notices the block, and the gateway grows by less than `growth_bytes` after warm-up."""
    warm()
    before, pids = settled(server), {name: server.pids(name) for name in ("m", "whole", "words")}
    with Bystander(server, BYSTANDER), GatewayWatch(server) as watch:
        yield watch
    assert watch.growth_bytes < growth_bytes, str(watch)
    assert watch.wait_s(1) < wait_s, str(watch)
    assert pids == {name: server.pids(name) for name in pids}
    assert_clean(before, server)


def document(data: bytes, shape: bytes = b"1", datatype: bytes = b"FP32") -> bytes:
    return b'{"inputs":[{"name":"x","datatype":"%b","shape":[%b],"data":%b}]}' % (datatype, shape, data)


def numbers(one: bytes, size: int) -> bytes:
    """A request of about `size` bytes with one long list."""
    count = size // (len(one) + 1)
    return document(b"[" + b",".join([one] * count) + b"]", b"%d" % count)


# JSON.

JSON: dict[str, tuple[Callable[[], bytes], str, int, str]] = {
    "33 MiB": (lambda: numbers(b"0.5", 33 * MIB), "m", 413, "send tensors as binary data"),
    "6 MiB of numbers": (lambda: numbers(b"0.125", 6 * MIB), "m", 200, ""),
    "6 MiB of digits": (lambda: numbers(b"1", 6 * MIB), "m", 200, ""),
    "too many numbers": (lambda: numbers(b"7", 2 * MIB).replace(b'"shape":[', b'"shape":[1'), "m", 400, "x"),
    "depth 100k": (lambda: document(b"[" * 100_000 + b"]" * 100_000), "m", 400, "deep"),
    "depth of objects": (lambda: b'{"a":' * 100_000, "m", 400, "deep"),
    "10^6 keys": (lambda: b"{%b}" % b",".join(b'"k%d":1' % n for n in range(1_000_000)), "m", 400, "values"),
    "200k lists": (lambda: document(b"[" + b"[],[1]," * 100_000 + b"[]]"), "m", 400, "lists and objects"),
    "a long string": (lambda: b'{"id":"%b"}' % (b"a" * 6 * MIB), "m", 400, "bytes besides"),
    "a long string of escapes": (lambda: b'{"id":"%b"}' % (b"\\n" * 3 * MIB), "m", 400, "bytes besides"),
    "a long number": (lambda: document(b"[" + b"1" * (6 * MIB) + b"]"), "m", 400, "bytes besides"),
    "nothing but spaces": (lambda: b" " * (6 * MIB), "m", 400, "bytes besides"),
    "quotes": (lambda: document(b"[" + b'"",' * 1_000_000 + b'""]', datatype=b"BYTES"), "words", 400, "values"),
    "doubled keys": (lambda: document(b"[1]").replace(b'"shape"', b'"shape":[9],"shape"'), "m", 200, ""),
    "doubled inputs": (lambda: document(b'[1]},{"name":"x"').replace(b"]}]}", b"]}]}"), "m", 400, "x"),
    "NaN for a number": (lambda: document(b"[NaN]"), "m", 200, ""),
    "NaN for an integer": (lambda: document(b"[NaN]", datatype=b"INT64"), "whole", 400, "x"),
    "1e400": (lambda: document(b"[1e400]"), "m", 400, "JSON"),
    "1e39 for FP32": (lambda: document(b"[1e39]"), "m", 400, "x"),
    "5000 digits": (lambda: document(b"[" + b"9" * 5000 + b"]", datatype=b"INT64"), "whole", 400, ""),
    "bad UTF-8": (lambda: b'{"id":"\xff\xfe"}', "m", 400, "JSON"),
    "half a pair": (lambda: document(b'["\\ud800"]', datatype=b"BYTES"), "words", 400, "JSON"),
}


@pytest.mark.fault("F46")
@pytest.mark.parametrize("at", range(0, len(JSON), 6))
def test_json_made_to_hurt_is_read_in_steps_or_refused(server: Server, at: int) -> None:
    cases = {name: (JSON[name][0](), *JSON[name][1:]) for name in list(JSON)[at : at + 6]}

    def ask_all() -> None:
        for name, (body, model, status, word) in cases.items():
            got, told = raw_http.ask(server.address(), [raw_http.head(model, size=len(body)), body])
            assert (got, word in told.get("error", "")) == (status, True), (name, told)

    with unnoticed(server, growth_bytes=200 * MIB, warm=ask_all):
        ask_all()


# Compressed bodies.


def bomb(coding: str, size: int) -> bytes:
    """A small compressed body that expands to `size` zeros, made of repeated blocks."""
    engine = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    start = engine.compress(bytes(MIB)) + engine.flush(zlib.Z_FULL_FLUSH)
    block = engine.compress(bytes(MIB)) + engine.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size // MIB - 1)


def chunked(body: bytes, size: int = 1 << 16) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


@pytest.mark.fault("F47")
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_gibibyte_out_of_a_mebibyte_is_refused_at_the_limit(server: Server, coding: str, framing: str) -> None:
    body = bomb(coding, 1 << 30)
    assert len(body) < 2 * MIB
    lines = [f"Content-Encoding: {coding}", f"{HEADER}: 0"]
    if framing == "chunks":
        sent = [raw_http.head("m", *lines, "Transfer-Encoding: chunked"), chunked(body)]
    else:
        sent = [raw_http.head("m", *lines, size=len(body)), body]

    def send() -> None:
        status, told = raw_http.ask(server.address(), sent)
        assert (status, told["code"]) == (413, "too_large"), told

    with unnoticed(server, growth_bytes=(64 + 48) * MIB, warm=send):
        send()


@pytest.mark.fault("F47")
@pytest.mark.parametrize(
    ("coding", "status"),
    [("br", 415), ("gzip, gzip", 415), ("deflate, gzip", 415), ("zstd", 415), ("x" * 4000, 415), ("gzip;q=1", 415)],
)
def test_an_encoding_that_is_not_known_or_is_nested_is_refused_by_the_head(
    server: Server, coding: str, status: int
) -> None:
    with unnoticed(server, growth_bytes=16 * MIB):
        got, told = raw_http.ask(server.address(), [raw_http.head("m", f"Content-Encoding: {coding}", size=1 << 20)])
    assert (got, told["code"]) == (status, "unsupported_media"), told


@pytest.mark.fault("F47")
def test_a_bomb_within_a_good_gzip_is_no_second_one(server: Server) -> None:
    inner = bomb("gzip", 16 * MIB)
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = engine.compress(inner) + engine.flush()
    with unnoticed(server, growth_bytes=16 * MIB):
        status, told = raw_http.ask(
            server.address(), [raw_http.head("m", "Content-Encoding: gzip", size=len(body)), body]
        )
    assert status == 400, told


# Sizes and shapes that lie.


@pytest.mark.fault("F48")
def test_lengths_that_lie_are_the_callers_fault(server: Server) -> None:
    body = document(b"[1]")
    values = ["-1", "+1", "1e3", "0x10", "", " ", "abc", f"{len(body) + 1}", "9" * 19, "9" * 40, "1.0", "1,1"]
    with unnoticed(server, growth_bytes=16 * MIB):
        for value in values:
            status, told = raw_http.ask(
                server.address(), [raw_http.head("m", f"{HEADER}: {value}", size=len(body)), body]
            )
            assert (status, HEADER in told["error"]) == (400, True), (value, told)
        lines = [f"{HEADER}: {len(body)}", f"{HEADER}: 0"]
        status, told = raw_http.ask(server.address(), [raw_http.head("m", *lines, size=len(body)), body])
        assert status == 400, told
        for size in (0, 1, 3, 5, 8, 2**31, 2**63, 2**64, -4):
            words = (
                b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":%d}}]}' % size
            )
            sent = raw_http.head("m", f"{HEADER}: {len(words)}", size=len(words) + 4)
            status, told = raw_http.ask(server.address(), [sent, words, b"abcd"])
            assert status == 400, (size, told)
        for blob in (b"", b"\x01", b"\x05\0\0\0abc", b"\xff\xff\xff\xffabc", b"\0\0\0\0\0\0\0\0"):
            words = b'{"inputs":[{"name":"x","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":%d}}]}'
            words %= len(blob)
            sent = raw_http.head("words", f"{HEADER}: {len(words)}", size=len(words) + len(blob))
            status, told = raw_http.ask(server.address(), [sent, words, blob])
            assert (status, "x" in told["error"]) == (400, True), (blob, told)


@pytest.mark.fault("F49")
def test_shapes_and_datatypes_that_lie_are_named_with_their_input(server: Server) -> None:
    big = [b"-1", b"0", b"2", b"4294967296,4294967296", b"18446744073709551616", b"1.0", b"true", b'"1"', b"null"]
    big += [b"1," * 100 + b"1", b"1," * 99_999 + b"1", b"9223372036854775807,9223372036854775807", b"-2,-1", b""]
    kinds = [b"FP64", b"fp32", b"BYTES", b"FP31", b"", b"X" * 100_000]
    with unnoticed(server, growth_bytes=32 * MIB):
        cases = [document(b"[1]", shape) for shape in big] + [document(b"[1]", datatype=kind) for kind in kinds]
        for body in cases:
            status, told = raw_http.ask(server.address(), [raw_http.head("m", size=len(body)), body])
            assert (status, "x" in told["error"]) == (400, True), (body[:80], told)


# Framing.


@pytest.mark.fault("F52")
def test_a_million_chunks_of_one_byte_are_refused_at_once(server: Server) -> None:
    body = document(b"[1]")
    padded = body[:-1] + b" " * (1_000_000 - len(body)) + b"}"
    pieces = chunked(padded, 1)

    def send() -> None:
        status, told = raw_http.ask(server.address(), [raw_http.head("m", "Transfer-Encoding: chunked"), pieces])
        assert (status, "small chunks" in told["error"]) == (400, True), told

    with unnoticed(server, growth_bytes=16 * MIB, warm=send, wait_s=0.1):
        send()


@pytest.mark.fault("F52")
def test_a_body_in_ordinary_chunks_is_served(server: Server) -> None:
    body = document(b"[1]")
    padded = body[:-1] + b" " * (1_000_000 - len(body)) + b"}"
    for size in (64, 8192):
        parts = [raw_http.head("m", "Transfer-Encoding: chunked"), chunked(padded, size)]
        assert raw_http.ask(server.address(), parts)[0] == 200, size


SMUGGLED = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
FRAMES: dict[str, bytes] = {
    "length and chunks": raw_http.head("m", "Transfer-Encoding: chunked", size=4) + b"0\r\n\r\n",
    "chunks and length": raw_http.head("m", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "two lengths": raw_http.head("m", "Content-Length: 4", "Content-Length: 5") + b"abcd",
    "a length twice in one": raw_http.head("m", "Content-Length: 4, 5") + b"abcd",
    "a negative length": raw_http.head("m", "Content-Length: -4"),
    "a length with a sign": raw_http.head("m", "Content-Length: +4") + b"abcd",
    "a space before the colon": raw_http.head("m", "Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "a chunk without end": raw_http.head("m", "Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n",
    "a chunk with a sign": raw_http.head("m", "Transfer-Encoding: chunked") + b"-1\r\n\r\n",
    "a chunk that is longer": raw_http.head("m", "Transfer-Encoding: chunked") + b"1\r\nab\r\n0\r\n\r\n",
    "chunks that are not last": raw_http.head("m", "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    "a folded header": raw_http.head("m", "X: a", " b", size=4) + b"abcd",
    "a zero in a header": raw_http.head("m", "X: a\0b", size=4) + b"abcd",
    "a line feed alone": raw_http.head("m", size=4).replace(b"\r\n", b"\n") + b"abcd",
    "a head of 1 MiB": raw_http.head("m", *(f"X{n}: {'a' * 1000}" for n in range(1000)), size=4),
}


@pytest.mark.fault("F52")
def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(server: Server) -> None:
    with unnoticed(server, growth_bytes=16 * MIB):
        for name, sent in FRAMES.items():
            with raw_http.connected(server.address()) as client:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(sent + SMUGGLED)
                told = b""
                with contextlib.suppress(ConnectionResetError):
                    while got := client.recv(65536):
                        told += got
            assert told.count(b"\r\nServer: ") <= 1, (name, told)
            assert not told or told[9:12] == b"400", (name, told)


# Clients that are slow, or leave.

SLOW = 500
BODY = document(b"[1]")


@pytest.mark.fault("F45")
def test_five_hundred_clients_that_dawdle_keep_nobody_waiting(server: Server) -> None:
    address = server.address()
    start = raw_http.head("one", size=len(BODY))
    with (
        unnoticed(server, growth_bytes=160 * MIB),
        raw_http.crowd(address, SLOW) as heads,
        raw_http.crowd(address, SLOW) as bodies,
    ):
        for each in heads:
            each.sendall(start[:20])
        for each in bodies:
            each.sendall(start + BODY[:10])
        for each in bodies:  # one byte more, as slow clients do to seem alive
            each.sendall(BODY[10:11])
        for each in heads:
            status, told = raw_http.reply(each)
            assert (status, told["code"]) == (408, "body_timeout")
            assert raw_http.is_closed(each)
        for each in bodies:
            each.sendall(BODY[11:])
        assert {raw_http.reply(each)[0] for each in bodies} == {200}


@pytest.mark.fault("F45")
def test_replies_that_nobody_reads_hold_bounded_memory(server: Server) -> None:
    size = 8 * MIB
    words = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d],"parameters":{"binary_data_size":%d}}],' % (
        size // 4,
        size,
    )
    words += b'"parameters":{"binary_data_output":true}}'
    sent = raw_http.head("m", f"{HEADER}: {len(words)}", size=len(words) + size) + words + bytes(size)

    def nobody_reads() -> None:
        with raw_http.crowd(server.address(), 6, receive_bytes=4096) as clients:
            for each in clients:
                each.sendall(sent)
            eventually(lambda: server.gauge("mmsup_requests_open", model="m") == len(clients), "all are being answered")
        eventually(lambda: server.gauge("mmsup_requests_open", model="m") == 0, "all are forgotten")

    with Bystander(server, BYSTANDER), GatewayWatch(server) as watch:
        nobody_reads()
    assert watch.growth_bytes < 32 * MIB, str(watch)
    eventually(lambda: not snapshot(server).used_bytes, "no arena memory is used")


@pytest.mark.fault("F50")
def test_clients_that_hang_up_at_every_point_leave_nothing(server: Server) -> None:
    start = raw_http.head("m", size=len(BODY))
    chunks = raw_http.head("m", "Transfer-Encoding: chunked") + chunked(BODY)
    whole: list[Any] = [start + BODY, chunks, (start + BODY) * 3, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"]

    def many_at_a_time() -> None:
        """Allocate the memory for as many open requests as the test has later."""
        with raw_http.crowd(server.address(), 64) as crowd:
            for client in crowd:
                client.sendall((start + BODY)[:-1])
            for client in crowd:
                client.sendall(BODY[-1:])
            assert {raw_http.reply(client)[0] for client in crowd} == {200}

    with unnoticed(server, growth_bytes=32 * MIB, warm=many_at_a_time):
        for turn in range(800):
            sent = whole[turn % len(whole)]
            with raw_http.connected(server.address()) as client:
                client.sendall(sent[: 1 + turn * 7 % len(sent)])
        eventually(lambda: server.gauge("mmsup_requests_open", model="m") == 0, "all are forgotten")
