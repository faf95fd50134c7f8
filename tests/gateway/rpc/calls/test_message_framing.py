"""Messages out of a body, however it is cut and compressed, and never beyond their limit."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsup.gateway.rpc.calls.message_framing import PREFIX_BYTES, SLICE_BYTES, MessageReader, prefix
from mmsup.ipc.errors import CallerError

LIMIT = 1000


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def read(reader: MessageReader, *pieces: bytes) -> list[bytes]:
    found = []
    for each in pieces:
        data = memoryview(each)
        while data:
            message, data = reader.feed(data)
            while reader.is_inflating:
                message = reader.inflate()
            if message is not None:
                found.append(message)
    return found


def refused(reader: MessageReader, *pieces: bytes) -> CallerError:
    with pytest.raises(CallerError) as caught:
        read(reader, *pieces)
    return caught.value


def test_the_prefix_is_a_zero_and_the_length() -> None:
    assert prefix(0x01020304) == b"\0\x01\x02\x03\x04"
    assert len(prefix(0)) == PREFIX_BYTES


@given(
    st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=6),
    st.lists(st.integers(0, 500), max_size=10),
    st.sampled_from([b"gzip", b"deflate"]),
)
def test_messages_are_the_same_wherever_the_body_is_cut(
    messages: list[tuple[bytes, bool]], cuts: list[int], encoding: bytes
) -> None:
    compress = gzip.compress if encoding == b"gzip" else zlib.compress
    body = b"".join(framed(compress(each), 1) if packed else framed(each) for each, packed in messages)
    places = sorted(min(each, len(body)) for each in cuts)
    pieces = [body[at:end] for at, end in zip([0, *places], [*places, len(body)], strict=True)]
    reader = MessageReader(LIMIT, encoding)
    assert read(reader, *pieces) == [each for each, _ in messages]
    assert reader.is_between_messages


def test_what_is_missing_is_known_with_the_length() -> None:
    reader = MessageReader(LIMIT)
    read(reader, framed(b"abcdef")[:4])
    assert (reader.missing_bytes, reader.size, reader.is_between_messages) == (0, -1, False)
    read(reader, framed(b"abcdef")[4:8])
    assert (reader.missing_bytes, reader.size, reader.is_between_messages) == (3, 6, False)
    assert read(reader, b"def") == [b"abcdef"]


@pytest.mark.parametrize("flag", [0, 1])
def test_a_message_beyond_the_limit_is_refused_by_its_length(flag: int) -> None:
    assert read(MessageReader(LIMIT), framed(bytes(LIMIT))) == [bytes(LIMIT)]
    error = refused(MessageReader(LIMIT, b"gzip"), framed(bytes(LIMIT + 1), flag)[:PREFIX_BYTES])
    assert error.code == "too_large"
    assert "exceeds the maximum allowed 1000 bytes" in error.text
    assert "--http-max-input-size" in error.text


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_a_message_that_inflates_beyond_the_limit_is_refused(encoding: bytes, compress: object) -> None:
    assert callable(compress)
    assert read(MessageReader(LIMIT, encoding), framed(compress(bytes(LIMIT)), 1)) == [bytes(LIMIT)]
    bomb = compress(bytes(LIMIT * 1000))
    limit = len(bomb) + 1
    assert refused(MessageReader(limit, encoding), framed(bomb, 1)).code == "too_large"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        (b"identity", gzip.compress(b"abc", mtime=0)),
        (b"gzip", b"nonsense"),
        (b"gzip", b""),
        (b"gzip", gzip.compress(b"abc", mtime=0)[:-1]),
        (b"gzip", zlib.compress(b"abc")),
        (b"deflate", gzip.compress(b"abc", mtime=0)),
        (b"deflate", zlib.compress(b"abc")[:-1]),
    ],
)
def test_a_compressed_message_that_is_none_is_refused(encoding: bytes, message: bytes) -> None:
    assert refused(MessageReader(LIMIT, encoding), framed(message, 1)).code == "bad_request"


def test_a_first_byte_that_means_nothing_is_refused() -> None:
    assert refused(MessageReader(LIMIT), framed(b"abc", 2)).code == "bad_request"


def test_an_encoding_that_is_not_known_has_no_reader() -> None:
    with pytest.raises(KeyError):
        MessageReader(LIMIT, b"zstd")


@pytest.mark.parametrize("size", [SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 10 * SLICE_BYTES])
@pytest.mark.parametrize("is_dense", [False, True])
def test_a_large_message_is_inflated_slice_by_slice(size: int, is_dense: bool) -> None:
    message = random.Random(size).randbytes(size) if is_dense else bytes(size)
    reader = MessageReader(1 << 30, b"gzip")
    packed = framed(gzip.compress(message, 1), 1)
    found, rest = reader.feed(memoryview(packed + b"next"))
    slices = 1
    while found is None:
        before = reader.held_bytes
        assert reader.is_inflating
        assert not reader.is_between_messages
        found = reader.inflate()
        slices += 1
        assert found is not None or reader.held_bytes <= before + SLICE_BYTES
    assert (found == message, bytes(rest), reader.is_between_messages) == (True, b"next", True)
    assert slices >= size // SLICE_BYTES
