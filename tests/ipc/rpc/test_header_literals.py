"""Blocks of literals are read as they were made, and by any other decoder."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from mmsup.ipc.rpc.header_literals import STATUS_200, block_of, read_block

FIELDS = st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=5)


@given(FIELDS, st.booleans())
def test_what_was_made_is_read_by_us_and_by_hpack(fields: list[tuple[bytes, bytes]], has_status: bool) -> None:
    block = STATUS_200 * has_status + block_of(fields)
    wanted = [(b":status", b"200")] * has_status + fields
    assert read_block(block) == wanted
    found = Decoder(1 << 20).decode(block, raw=True)
    assert [(bytes(name), bytes(value)) for name, value in found] == wanted


@given(FIELDS.filter(bool), st.integers(1, 1000))
def test_a_block_that_is_cut_off_is_refused(fields: list[tuple[bytes, bytes]], cut: int) -> None:
    block = block_of(fields)
    ends = {len(block_of(fields[:count])) for count in range(len(fields))}
    at = cut % len(block)
    if at not in ends:
        with pytest.raises(ValueError, match="cut off"):
            read_block(block[:at])


@given(st.binary(max_size=60))
def test_any_bytes_are_headers_or_refused(block: bytes) -> None:
    try:
        found = read_block(block)
    except ValueError:
        return
    assert len(read_block(block_of(found))) == len(found)
