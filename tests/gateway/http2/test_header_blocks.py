"""Header blocks: the same headers as hpack alone finds, whether a block is known or not."""

from __future__ import annotations

import contextlib

import pytest
from hpack import Decoder, Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError
from hpack.hpack import encode_integer
from hypothesis import given
from hypothesis import strategies as st

from mmsup.gateway.http2.frames import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, ConnectionFault
from mmsup.gateway.http2.header_blocks import (
    BLOCK_LIMIT_BYTES,
    KNOWN_LIMIT,
    LIST_LIMIT_BYTES,
    HeaderBlocks,
)
from mmsup.ipc.rpc.header_literals import Headers, block_of, literal

NAMES = st.sampled_from([b"a", b"b", b":path", b"content-type", b"te"])
VALUES = st.sampled_from([b"", b"1", b"2", b"application/grpc", b"x" * 60])
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=4)


def decoded(decoder: Decoder, block: bytes) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


@given(st.lists(st.tuples(FIELDS, st.none() | st.integers(0, 4096), st.booleans()), max_size=12))
def test_blocks_say_what_a_decoder_without_memory_of_blocks_finds(
    steps: list[tuple[list[tuple[bytes, bytes, bool]], int | None, bool]],
) -> None:
    encoder, plain, blocks = Encoder(), Decoder(), HeaderBlocks()
    for fields, table_size, is_huffman in steps:
        if table_size is not None:
            encoder.header_table_size = table_size
        given_fields = [HeaderTuple(name, value) for name, value, _ in fields]
        for each, (name, value, is_indexed) in enumerate(fields):
            if not is_indexed:
                given_fields[each] = NeverIndexedHeaderTuple(name, value)
        block = encoder.encode(given_fields, huffman=is_huffman)
        expected = decoded(plain, block)
        assert blocks.decode(block) == expected
    assert blocks._table_state()[:2] == (plain.header_table.maxsize, len(plain.header_table.dynamic_entries))


PIECES = st.sampled_from(
    [
        b"\x82",  # of the static table
        b"\xbe", b"\xbf", b"\xc0",  # of the dynamic table: 62, 63, 64
        b"\x40\x01a\x011", b"\x40\x01a\x012", b"\x7e\x013",  # added
        b"\x00\x01a\x011", b"\x0f\x2f\x014",  # not added
        b"\x20", b"\x3f\xe1\x1f", b"\x3f\x21",  # sizes of the table: 0, 4096, 64
    ]
)  # fmt: skip


@given(st.lists(st.lists(PIECES, min_size=1, max_size=4).map(b"".join), max_size=20))
def test_any_mix_of_blocks_from_a_few_is_read_as_without_memory_of_them(given_blocks: list[bytes]) -> None:
    plain, blocks = Decoder(LIST_LIMIT_BYTES), HeaderBlocks()
    for block in given_blocks:
        try:
            expected = decoded(plain, block)
        except (HPACKError, ValueError, IndexError):
            with pytest.raises(ConnectionFault) as caught:
                blocks.decode(block)
            assert caught.value.code == COMPRESSION_ERROR
            return
        assert blocks.decode(block) == expected


def test_a_known_block_is_not_decoded_again() -> None:
    blocks = HeaderBlocks()
    block = block_of([(b":path", b"/x")])
    assert blocks.decode(block) is blocks.decode(block)


def test_known_blocks_are_dropped_when_the_table_changes() -> None:
    blocks = HeaderBlocks()
    assert blocks.decode(b"\x40\x01a\x011") == [(b"a", b"1")]
    assert blocks.decode(b"\xbe") == blocks.decode(b"\xbe") == [(b"a", b"1")]
    assert blocks.decode(b"\x40\x01a\x012") == [(b"a", b"2")]
    assert blocks.decode(b"\xbe") == [(b"a", b"2")]


def test_known_blocks_are_few() -> None:
    blocks = HeaderBlocks()
    for number in range(10 * KNOWN_LIMIT):
        blocks.decode(literal(b"a", b"%d" % number))
    assert len(blocks._known) <= KNOWN_LIMIT


def test_blocks_that_are_long_are_not_kept() -> None:
    blocks = HeaderBlocks()
    block = literal(b"a", b"x" * 5000)
    assert blocks.decode(block) == blocks.decode(block)
    assert not blocks._known


def test_a_list_of_headers_is_bounded_also_when_its_block_is_small() -> None:
    """An entry of the dynamic table that is named again and again (the HPACK bomb)."""
    blocks = HeaderBlocks()
    blocks.decode(b"\x40\x01a" + b"\x7f\x81\x1e" + b"x" * 3968)
    with pytest.raises(ConnectionFault):
        blocks.decode(b"\xbe" * 5)


def test_a_block_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderBlocks().decode(bytes(BLOCK_LIMIT_BYTES + 1))
    assert caught.value.code == ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "block", [b"\xff", b"\x80", b"\xbe", b"\x40\x7f", b"\x00\x05ab", b"\x3f\xe2\x1f", b"\x00\x81\xff\x00", b"\xff" * 40]
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        HeaderBlocks().decode(block)
    assert caught.value.code == COMPRESSION_ERROR


@given(st.binary(max_size=60))
def test_any_bytes_are_headers_or_the_end_of_the_connection(block: bytes) -> None:
    with contextlib.suppress(ConnectionFault):
        HeaderBlocks().decode(block)


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_000])
def test_what_we_send_is_read_by_a_decoder_and_not_added_to_its_table(size: int) -> None:
    decoder = Decoder(1 << 20)
    sent = [(b"a" * max(size, 1), b"v" * size), (b"grpc-status", b"0")]
    assert decoded(decoder, block_of(sent)) == sent
    assert not decoder.header_table.dynamic_entries
    assert literal(b"", b"v" * size)[2:].startswith(encode_integer(size, 7))
