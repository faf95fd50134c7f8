"""Hostile HTTP/2 and gRPC: each client is answered or cut off in bounded memory and time, and no other one notices."""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from engines.build import write_identity_onnx
from harness import raw_http
from harness.bystander import Bystander
from harness.gateway_watch import GatewayWatch
from harness.installation import Installation
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository
from http2_client import START, data, frame, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.rpc.calls.messages import Message, message_class
from mmsup.ipc.rpc.header_literals import block_of, literal
from rpc_session import framed

pytestmark = pytest.mark.slow
MIB = 1 << 20
WAIT_S = 0.06
"""Most CPU time of the gateway that a small request waits for beside this."""
WIDE = frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW}) + frames.window_update(0, 1 << 30)
ROWS = 4096
INFER = "/inference.GRPCInferenceService/ModelInfer"


def call(path: str = INFER, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a call."""
    given = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode())]
    return block_of([*given, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more])


def infer(size: int) -> bytes:
    """A message for the identity `m` with a reply as large."""
    made: Message = message_class("inference.ModelInferRequest")(model_name="m")
    made.inputs.add(name="x", datatype="FP32", shape=[size])
    made.raw_input_contents.append(bytes(4 * size))
    return framed(made.SerializeToString())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("floods")
    installed = Installation(folder / "installed")
    installed.change("gateway/http2/connection.py", "SEND_LIMIT_S: Final = 60.0", "SEND_LIMIT_S: Final = 0.5")
    installed.change(
        "gateway/rpc/calls/message_receiver.py", "MESSAGE_LIMIT_S: Final = 60.0", "MESSAGE_LIMIT_S: Final = 0.5"
    )
    installed.change("gateway/server.py", "SWEEP_INTERVAL_S: Final = 5.0", "SWEEP_INTERVAL_S: Final = 0.2")
    repository = bystander_repository(folder / "models")
    write_identity_onnx(repository, "m", dims=[-1])
    with serving(repository, python=installed.python) as running:
        for _ in range(2):
            assert answered(running, headers(1, call()) + data(1, infer(ROWS), end=True))
        http = running.http()
        assert http.infer(BYSTANDER, x=("FP32", [1], [0.0]))[0] == 200
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@contextlib.contextmanager
def unnoticed(server: Server, growth_bytes: int = 40 * MIB, wait_s: float = WAIT_S) -> Iterator[None]:
    before, pids = settled(server), server.pids("m")
    with Bystander(server, BYSTANDER), GatewayWatch(server) as watch:
        yield
    assert watch.growth_bytes < growth_bytes, str(watch)
    assert watch.wait_s(1) < wait_s, str(watch)
    assert server.pids("m") == pids
    assert_clean(before, server)


def answered(server: Server, given: bytes) -> bool:
    """Whether the first stream of a new connection is answered."""
    with raw_http.connected(server.address("grpc")) as client:
        client.sendall(START + WIDE + given)
        return bool(next_frame(client, frames.HEADERS, 1))


def next_frame(client: socket.socket, kind: int, stream: int) -> bytes:
    """The payload of the next frame of this kind on a stream; ConnectionError at the end."""
    with client.makefile("rb") as file:
        while head := file.read(frames.HEAD_BYTES):
            size, found, _, number = frames.read_head(head, 0)
            payload = file.read(size)
            if (found, number) == (kind, stream):
                return payload
    raise ConnectionError("closed")


def last_words(server: Server, given: bytes) -> int:
    """The code of the GOAWAY that answers these bytes; the connection must end."""
    with raw_http.connected(server.address("grpc")) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(given)
        with contextlib.suppress(ConnectionError):
            code = int.from_bytes(next_frame(client, frames.GOAWAY, 0)[4:8], "big")
            assert raw_http.is_closed(client)
            return code
    return -1  # it was cut off before it read


def many(each: Callable[[int], bytes], count: int = 20_000) -> bytes:
    return START + b"".join(each(2 * number + 1) for number in range(count))


ATTACKS: dict[str, Callable[[], bytes]] = {
    "rapid reset": lambda: many(lambda n: headers(n, call()) + data(n, infer(1)) + frames.rst_stream(n, 8)),
    "made to reset": lambda: many(
        lambda n: headers(n, call()) + data(n, infer(1), end=True) + frames.window_update(n, 0)
    ),
    "empty continuations": lambda: START + headers(1, b"", flags=0) + frame(frames.CONTINUATION, b"", 1) * 100_000,
    "large continuations": lambda: (
        START + headers(1, b"", flags=0) + frame(frames.CONTINUATION, bytes(16384), 1) * 1000
    ),
    "settings": lambda: START + frames.settings({}) * 100_000,
    "pings": lambda: START + frame(frames.PING, bytes(8)) * 100_000,
    "priorities": lambda: START + frame(frames.PRIORITY, b"\0\0\0\0\1", 1) * 200_000,
    "window updates": lambda: START + headers(1, call()) + frames.window_update(1, 1) * 200_000,
    "empty data": lambda: START + headers(1, call()) + data(1) * 100_000,
    "header bomb": lambda: START + headers(1, b"\x40\x01a\x7f\x81\x1e" + b"x" * 3968) + headers(3, b"\xbe" * 16000),
    "headers": lambda: START + headers(1, literal(b"a", b"x" * 16370)),
    "window overflow": lambda: START + frames.window_update(0, frames.MAX_WINDOW) * 2,
    "another protocol": lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
}  # fmt: skip


@pytest.mark.fault("F53")
def test_who_floods_with_frames_is_cut_off(server: Server) -> None:
    codes: dict[str, int] = {}
    with unnoticed(server):
        for name, made in ATTACKS.items():
            codes[name] = last_words(server, made())
    calm = {"rapid reset", "made to reset", "empty continuations", "large continuations", "settings", "pings"}
    calm |= {"priorities", "window updates", "empty data"}
    assert {name for name, code in codes.items() if code not in (frames.ENHANCE_YOUR_CALM, -1)} == codes.keys() - calm
    assert not [name for name, code in codes.items() if code == frames.NO_ERROR], codes


@pytest.mark.fault("F53")
def test_who_calls_what_is_not_there_over_and_over_delays_nobody(server: Server) -> None:
    block = call("/no/method")
    with unnoticed(server), raw_http.connected(server.address("grpc")) as client:
        client.sendall(many(lambda n: headers(n, block, end=True), 10_000))
        assert next_frame(client, frames.HEADERS, 19_999)


@pytest.mark.fault("F53")
def test_replies_that_nobody_reads_are_given_up_and_their_memory_is_free(server: Server) -> None:
    leave_unread(server)
    with unnoticed(server):
        leave_unread(server)


def leave_unread(server: Server, calls: int = 60) -> None:
    """Call and read nothing, until the replies are given up."""
    message = infer(48 * 1024)  # less than the window of a stream
    with raw_http.connected(server.address("grpc"), receive_bytes=4096) as client:
        client.sendall(START + WIDE)
        for number in range(1, 2 * calls, 2):
            client.sendall(headers(number, call()))
            for at in range(0, len(message), 16384):
                client.sendall(data(number, message[at : at + 16384]))
            client.sendall(data(number, end=True))
        eventually(lambda: server.gauge("mmsup_arena_used_bytes") > 0, "replies wait")
        eventually(lambda: server.gauge("mmsup_arena_used_bytes") == 0, "they are given up, and their memory is free")
        assert frames.RST_STREAM in kinds_until(client, frames.RST_STREAM)


def kinds_until(client: socket.socket, kind: int) -> set[int]:
    """The kinds of frames that have come, up to this one."""
    found: set[int] = set()
    with client.makefile("rb") as file:
        while kind not in found and (head := file.read(frames.HEAD_BYTES)):
            size, each, _, _ = frames.read_head(head, 0)
            file.read(size)
            found.add(each)
    return found


@pytest.mark.fault("F53", "F45")
def test_a_message_that_stops_or_announces_too_much_is_refused(server: Server) -> None:
    cases = {
        "stops": (framed(bytes(1000))[:100], "4"),
        "too large": (struct.pack(">BI", 0, (1 << 32) - 1), "8"),
        "bomb": (framed(gzip.compress(bytes(65 * MIB), 1), 1), "8"),
        "no gzip": (framed(b"nonsense", 1), "3"),
        "no message": (framed(b"\xff" * 1000), "3"),
    }
    with unnoticed(server, growth_bytes=200 * MIB, wait_s=0.5):
        for name, (body, status) in cases.items():
            with raw_http.connected(server.address("grpc")) as client:
                client.sendall(START + headers(1, call(INFER, (b"grpc-encoding", b"gzip"))))
                for at in range(0, len(body), 16384):
                    client.sendall(data(1, body[at : at + 16384]))
                next_frame_of_two = next_frames(client, 2)
                assert literal(b"grpc-status", status.encode()) in next_frame_of_two, name


def next_frames(client: socket.socket, count: int) -> bytes:
    """The payloads of the next HEADERS frames of the first stream."""
    found = b""
    with client.makefile("rb") as file:
        while count and (head := file.read(frames.HEAD_BYTES)):
            size, kind, _, number = frames.read_head(head, 0)
            payload = file.read(size)
            if (kind, number) == (frames.HEADERS, 1):
                found, count = found + payload, count - 1
    return found


@pytest.mark.fault("F53", "F45")
def test_a_call_that_comes_byte_by_byte_is_served(server: Server) -> None:
    whole = START + headers(1, call()) + data(1, infer(2), end=True)
    with unnoticed(server), raw_http.connected(server.address("grpc")) as client:
        for at in range(len(whole)):
            client.sendall(whole[at : at + 1])
        assert literal(b"grpc-status", b"0") in next_frames(client, 2)


@pytest.mark.fault("F53")
def test_random_bytes_and_frames_end_their_own_connection_alone(server: Server) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chosen = random.Random(seed)
    with unnoticed(server):
        for _ in range(150):
            body = START
            for _ in range(chosen.randrange(1, 30)):
                kind = chosen.choice([0, 1, 1, 1, 3, 4, 6, 7, 8, 9, chosen.randrange(256)])
                block = call() if chosen.random() < 0.5 else chosen.randbytes(chosen.randrange(40))
                body += frame(kind, block, chosen.choice([0, 1, 3, 5, 2]), chosen.choice([0, 1, 4, 5, 8, 0x20, 255]))
            body += chosen.randbytes(chosen.randrange(50))
            with raw_http.connected(server.address("grpc")) as client:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(body if chosen.random() < 0.9 else chosen.randbytes(200))
                    client.shutdown(socket.SHUT_WR)
                assert raw_http.is_closed(client)
