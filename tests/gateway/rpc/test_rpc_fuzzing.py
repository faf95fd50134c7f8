"""Bytes of any kind, where clients of gRPC may send them: refused by name or read as they would be by others."""

from __future__ import annotations

import contextlib
import gzip
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from fake_router import metadata
from fuzzing import fuzz
from http2_client import GET, START, Peer, data, frame, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.frame_reader import FrameReader
from mmsup.gateway.http2.frames import ConnectionFault
from mmsup.gateway.http2.header_blocks import LIST_LIMIT_BYTES, HeaderBlocks
from mmsup.gateway.http2.streams import STREAMS_LIMIT
from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.protocol import infer_request as request_document
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.gateway.rpc.calls.message_framing import MessageReader
from mmsup.gateway.rpc.calls.messages import message_class
from mmsup.gateway.rpc.infer import infer_messages
from mmsup.gateway.rpc.infer.known_messages import KnownMessages
from mmsup.ipc.errors import CallerError
from rpc_session import framed

FEW, SHORT_S = 1500, 5.0
"""Executions of the fast tests, and what they may take on a busy machine."""
MANY, LONG_S = 300_000, 75.0
LIMIT = 4096
META = metadata(("X", "FP32", (-1,)))


def blocks() -> list[bytes]:
    encoder = Encoder()
    made = [bytes(encoder.encode(GET)), bytes(encoder.encode([*GET, (b"grpc-timeout", b"1S")]))]
    made += [bytes(encoder.encode([(f"x-{each}".encode(), b"v" * each) for each in range(9)])), b"\x3f\xe1\x1f\x82"]
    return made


def connections() -> list[bytes]:
    first, second, third, _ = blocks()
    call = framed(b"message")
    return [
        START + headers(1, first) + data(1, call, end=True),
        START + headers(1, first) + headers(3, second, end=True) + frames.rst_stream(1, 8) + headers(5, third),
        START + frame(frames.HEADERS, first[:3], 1, 0) + frame(frames.CONTINUATION, first[3:], 1, frames.END_HEADERS),
        START + frames.settings({4: 1 << 20, 5: 1 << 15}) + frames.ping(b"12345678") + frames.window_update(0, 1000),
        START + headers(1, first) + frame(frames.DATA, b"\x03" + call + bytes(3), 1, frames.PADDED) + data(1, b""),
        START + headers(1, first) + frames.window_update(1, 7) + frame(2, bytes(5), 1) + frames.goaway(0, 0, "bye"),
    ]


def take_connection(given: bytes) -> None:
    """One connection, in two reads."""
    peer, reader = Peer(), FrameReader()
    half = len(given) // 2
    with contextlib.suppress(ConnectionFault):
        for part in (given[:half], given[half:]):
            reader.feed(part, peer.streams)
            while reader.has_more:
                reader.feed(b"", peer.streams)
    assert len(peer.streams.open) <= STREAMS_LIMIT
    assert len(peer.written) <= 64 * (len(given) + 64), "the answer is much larger than what was sent"
    for handler in peer.handlers.values():
        assert handler.events.count("end") <= 1
        assert handler.events.count("reset") <= 1
        assert "reset" not in handler.events[:-1], "something came after the reset"


def take_blocks(given: bytes) -> None:
    """Several header blocks of one connection, as hpack itself decodes them, however often each comes."""
    ours, theirs = HeaderBlocks(), Decoder(LIST_LIMIT_BYTES)
    cut = len(given) // 3
    for block in (given[:cut], given[:cut], given[cut:], given[:cut], given[cut:]):
        try:
            wanted = [(bytes(name), bytes(value)) for name, value in theirs.decode(block, raw=True)]
        except (HPACKError, ValueError, IndexError):
            with pytest.raises(ConnectionFault):
                ours.decode(block)
            return
        assert ours.decode(block) == wanted


def infer_messages_of_all_kinds() -> list[bytes]:
    request = message_class("inference.ModelInferRequest")
    made = []
    for size in (1, 4, 40):
        raw = request(model_name="m", id="7" * size)
        raw.inputs.add(name="X", datatype="FP32", shape=[size])
        raw.raw_input_contents.append(np.arange(size, dtype=np.float32).tobytes())
        typed = request(model_name="m", model_version="1")
        typed.inputs.add(name="X", datatype="FP32", shape=[size]).contents.fp32_contents.extend(range(size))
        typed.parameters["timeout"].int64_param = 5
        typed.outputs.add(name="X").parameters["classification"].int64_param = 1
        two = request(model_name="m")
        for each in ("X", "Y"):
            two.inputs.add(name=each, datatype="BYTES", shape=[1]).parameters["a"].string_param = "b"
            two.raw_input_contents.append(b"\x01\0\0\0a")
        made += [each.SerializeToString(deterministic=True) for each in (raw, typed, two)]
    return made


class KnownReader:
    """Reads requests with a memory of earlier ones, and compares each with what protobuf reads."""

    def __init__(self) -> None:
        self.known = KnownMessages()
        self.matches = 0

    def take(self, given: bytes) -> None:
        found = self.known.find(given)
        try:
            request = infer_messages.read_request(infer_messages.parse_message(given))
        except CallerError:
            assert found is None, "a message that is none was taken for a known one"
            return
        if found is not None:
            self.matches += 1
            known = found[1]
            assert (known.model, known.version, known.id) == (request.model, request.version, request.id)
            assert known.document == request.document
            assert [bytes(each) for each in known.blobs] == [bytes(each) for each in request.blobs]
            return
        blob = b"".join(bytes(each) for each in request.blobs)
        try:
            parsed = request_document.parse_request(
                request.document, request.model, META, Blobs(memoryview(bytearray(blob)), 0, len(blob))
            )
        except CallerError:
            return
        self.known.add(given, request, ParsedRequest(parsed, META), "1")


def bodies() -> list[bytes]:
    packed = gzip.compress(bytes(3000), mtime=0)
    return [framed(b"abc") + framed(b"") + framed(bytes(100)), framed(packed, 1) + framed(b"x"), framed(b"abc", 1)]


def take_body(given: bytes) -> None:
    """The same messages, or the same refusal, however it is cut."""

    def messages(pieces: Sequence[bytes]) -> list[bytes | str]:
        reader, found = MessageReader(LIMIT, b"gzip"), list[bytes | str]()
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    message, rest = reader.feed(rest)
                    while reader.is_inflating:
                        message = reader.inflate()
                    if message is not None:
                        assert len(message) <= LIMIT
                        found.append(message)
        except CallerError as error:
            found.append(error.code)
        return found

    cut = len(given) // 2
    assert messages([given]) == messages([given[:cut], given[cut:]])


TARGETS: dict[str, Callable[[], tuple[Callable[[bytes], None], list[bytes]]]] = {
    "connections": lambda: (take_connection, connections()),
    "header blocks": lambda: (take_blocks, blocks()),
    "requests": lambda: (KnownReader().take, infer_messages_of_all_kinds()),
    "bodies": lambda: (take_body, bodies()),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_thousand_inputs(name: str) -> None:
    target, corpus = TARGETS[name]()
    assert fuzz(target, corpus, random.getrandbits(32), FEW, SHORT_S) > len(corpus)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_a_million_inputs(name: str) -> None:
    target, corpus = TARGETS[name]()
    count = fuzz(target, corpus, random.getrandbits(32), MANY, LONG_S)
    print(f"{name}: {count} executions")
    assert count > 20 * FEW


def test_requests_that_differ_in_their_tensors_alone_are_known() -> None:
    reader = KnownReader()
    for value in range(10):
        request = message_class("inference.ModelInferRequest")(model_name="m")
        request.inputs.add(name="X", datatype="FP32", shape=[2])
        request.raw_input_contents.append(np.array([value, 1], np.float32).tobytes())
        reader.take(request.SerializeToString())
    assert reader.matches == 9
