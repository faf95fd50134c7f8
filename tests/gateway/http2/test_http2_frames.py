"""Frames as another implementation, hyperframe, writes and reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hyperframe import frame as other
from hypothesis import given
from hypothesis import strategies as st

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.frames import ConnectionFault


def parsed(written: bytes) -> Any:  # a frame of the kind that it is
    made, size = other.Frame.parse_frame_header(memoryview(written[:9]))
    assert size == len(written) - 9
    made.parse_body(memoryview(written[9:]))
    return made


@given(st.integers(0, (1 << 24) - 1), st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << 31) - 1))
def test_a_head_is_read_as_it_was_written(size: int, kind: int, flags: int, stream: int) -> None:
    written = frames.head(size, kind, flags, stream)
    assert len(written) == frames.HEAD_BYTES
    assert frames.read_head(b"x" + written, 1) == (size, kind, flags, stream)


def test_the_reserved_bit_of_a_stream_is_ignored() -> None:
    assert frames.read_head(b"\0\0\0\0\0\xff\xff\xff\xff", 0)[3] == (1 << 31) - 1


def test_another_implementation_reads_our_settings() -> None:
    made = parsed(frames.settings({frames.MAX_FRAME_SIZE: 1 << 20, frames.INITIAL_WINDOW_SIZE: 7}))
    assert isinstance(made, other.SettingsFrame)
    assert made.settings == {other.SettingsFrame.MAX_FRAME_SIZE: 1 << 20, other.SettingsFrame.INITIAL_WINDOW_SIZE: 7}
    acknowledged = parsed(frames.SETTINGS_ACK)
    assert "ACK" in acknowledged.flags


def test_another_implementation_reads_our_other_frames() -> None:
    ping = parsed(frames.ping_ack(b"12345678"))
    assert (ping.opaque_data, "ACK" in ping.flags) == (b"12345678", True)
    goaway = parsed(frames.goaway(7, frames.ENHANCE_YOUR_CALM, "too_many_pings"))
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (7, 11, b"too_many_pings")
    reset = parsed(frames.rst_stream(5, frames.CANCEL))
    assert (reset.stream_id, reset.error_code) == (5, 8)
    update = parsed(frames.window_update(3, 1 << 20))
    assert (update.stream_id, update.window_increment) == (3, 1 << 20)


def test_settings_are_read_in_their_order() -> None:
    written = frames.settings({frames.INITIAL_WINDOW_SIZE: 1, frames.MAX_FRAME_SIZE: 16384, 99: 5})
    assert frames.read_settings(written[9:]) == [(4, 1), (5, 16384), (99, 5)]


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (frames.ENABLE_PUSH, 2, frames.PROTOCOL_ERROR),
        (frames.INITIAL_WINDOW_SIZE, 1 << 31, frames.FLOW_CONTROL_ERROR),
        (frames.MAX_FRAME_SIZE, 16383, frames.PROTOCOL_ERROR),
        (frames.MAX_FRAME_SIZE, 1 << 24, frames.PROTOCOL_ERROR),
    ],
)
def test_a_setting_beyond_its_range_ends_the_connection(key: int, value: int, code: int) -> None:
    with pytest.raises(ConnectionFault) as caught:
        frames.read_settings(frames.settings({key: value})[9:])
    assert caught.value.code == code


def test_settings_that_are_cut_off_end_the_connection() -> None:
    with pytest.raises(ConnectionFault) as caught:
        frames.read_settings(b"12345")
    assert caught.value.code == frames.FRAME_SIZE_ERROR


def test_a_number_has_four_bytes_and_31_bits() -> None:
    assert frames.read_number(b"\x80\0\0\x05") == 5
    for wrong in (b"", b"123", b"12345"):
        with pytest.raises(ConnectionFault) as caught:
            frames.read_number(wrong)
        assert caught.value.code == frames.FRAME_SIZE_ERROR


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("has_priority", [False, True])
def test_a_header_block_is_found_within_padding_and_priority(*, is_padded: bool, has_priority: bool) -> None:
    made = other.HeadersFrame(7, b"the block")
    flags = 0
    if is_padded:
        made.flags.add("PADDED")
        made.pad_length = 9
        flags |= frames.PADDED
    if has_priority:
        made.flags.add("PRIORITY")
        made.depends_on, made.stream_weight = 3, 20
        flags |= frames.HAS_PRIORITY
    assert frames.header_block(made.serialize_body(), flags) == b"the block"


def test_padding_that_fills_its_frame_leaves_nothing() -> None:
    assert frames.unpadded(b"\x03abc", frames.PADDED) == b""


@pytest.mark.parametrize("payload", [b"", b"\x04abc", b"\xff"])
def test_padding_that_is_longer_than_its_frame_ends_the_connection(payload: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        frames.unpadded(payload, frames.PADDED)
    assert caught.value.code == frames.PROTOCOL_ERROR


def test_a_priority_that_is_cut_off_is_a_fault() -> None:
    with pytest.raises(ConnectionFault) as caught:
        frames.header_block(b"1234", frames.HAS_PRIORITY)
    assert caught.value.code == frames.FRAME_SIZE_ERROR
