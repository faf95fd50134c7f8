"""Frames out of a stream of bytes, however these are cut."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http2_client import frame
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.frame_reader import FRAME_BYTES, FRAMES_A_TURN, OTHER_FRAME_BYTES, FrameReader
from mmsup.gateway.http2.frames import DATA, PADDED, PREFACE, ConnectionFault

SEEN = list[tuple[object, ...]]


@dataclass
class Sink:
    """What came, each DATA frame with its parts joined."""

    seen: SEEN = field(default_factory=list)
    body: bytes = b""

    def on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.seen.append((kind, flags, stream, payload))

    def on_data_head(self, stream: int, size: int) -> None:
        self.seen.append(("data of", stream, size))
        self.body = b""

    def on_data(self, stream: int, data: memoryview) -> None:
        assert len(data), "an empty part"
        assert self.seen[-1][:2] == ("data of", stream)
        self.body += data

    def on_data_end(self, stream: int, flags: int) -> None:
        self.seen.append(("end of data", stream, flags, self.body))


def read(*pieces: bytes) -> SEEN:
    reader, sink = FrameReader(), Sink()
    for each in pieces:
        reader.feed(each, sink)
    return sink.seen


def code_of(*pieces: bytes) -> int:
    with pytest.raises(ConnectionFault) as caught:
        read(*pieces)
    return caught.value.code


def padded(payload: bytes, padding: int) -> bytes:
    return bytes((padding,)) + payload + bytes(padding)


def data_frame(payload: bytes, padding: int | None, flags: int) -> tuple[bytes, SEEN]:
    """The frame, and what its sink sees."""
    whole = payload if padding is None else padded(payload, padding)
    flags |= 0 if padding is None else PADDED
    return frame(DATA, whole, 3, flags), [("data of", 3, len(whole)), ("end of data", 3, flags, payload)]


def other_frame(kind: int, payload: bytes, flags: int, stream: int) -> tuple[bytes, SEEN]:
    return frame(kind, payload, stream, flags), [(kind, flags, stream, payload)]


FRAMES = st.one_of(
    st.builds(data_frame, st.binary(max_size=40), st.none() | st.integers(0, 255), st.sampled_from([0, 1])),
    st.builds(other_frame, st.integers(1, 255), st.binary(max_size=40), st.integers(0, 255), st.integers(0, 9)),
)


@given(st.lists(FRAMES, max_size=8), st.data())
def test_frames_are_the_same_wherever_the_bytes_are_cut(
    given_frames: list[tuple[bytes, SEEN]], cuts: st.DataObject
) -> None:
    whole = PREFACE + b"".join(each for each, _ in given_frames)
    places = sorted(cuts.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[at:end] for at, end in zip([0, *places], [*places, len(whole)], strict=True)]
    assert read(*pieces) == [each for _, seen in given_frames for each in seen]


def test_frames_are_the_same_byte_by_byte() -> None:
    made = [data_frame(b"abc", 2, 1), other_frame(4, b"", 0, 0), data_frame(b"", 0, 0), data_frame(b"", None, 1)]
    whole = PREFACE + b"".join(each for each, _ in made)
    assert read(*[whole[at : at + 1] for at in range(len(whole))]) == [each for _, seen in made for each in seen]


def test_data_is_passed_on_before_its_frame_is_complete() -> None:
    reader, sink = FrameReader(), Sink()
    reader.feed(PREFACE + frames.head(1000, DATA, 0, 1) + b"abc", sink)
    assert (sink.seen, sink.body) == ([("data of", 1, 1000)], b"abc")


def test_the_preface_is_complete_after_24_bytes_and_not_before() -> None:
    reader = FrameReader()
    for at in range(24):
        assert not reader.has_begun
        reader.feed(PREFACE[at : at + 1], Sink())
    assert reader.has_begun


@pytest.mark.parametrize("first", [b"G", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.0\r\n", b"\x16\x03\x01\x02\x00"])
def test_another_protocol_is_told_from_its_first_wrong_byte(first: bytes) -> None:
    assert code_of(first) == frames.PROTOCOL_ERROR


def test_a_frame_that_is_too_large_is_refused_by_its_head() -> None:
    assert code_of(PREFACE + frames.head(OTHER_FRAME_BYTES + 1, frames.HEADERS, 4, 1)) == frames.FRAME_SIZE_ERROR
    assert code_of(PREFACE + frames.head(FRAME_BYTES + 1, DATA, 0, 1)) == frames.FRAME_SIZE_ERROR
    assert read(PREFACE + frames.head(FRAME_BYTES, DATA, 0, 1)) == [("data of", 1, FRAME_BYTES)]


def test_the_largest_frame_of_another_kind_is_read() -> None:
    payload = bytes(OTHER_FRAME_BYTES)
    assert read(PREFACE, frame(99, payload)) == [(99, 0, 0, payload)]


def test_padding_must_leave_room_for_its_own_length() -> None:
    assert code_of(PREFACE + frames.head(0, DATA, PADDED, 1)) == frames.FRAME_SIZE_ERROR
    assert code_of(PREFACE + frames.head(4, DATA, PADDED, 1) + b"\x04abc") == frames.PROTOCOL_ERROR
    assert read(PREFACE + frames.head(4, DATA, PADDED, 1) + b"\x03abc")[-1] == ("end of data", 1, PADDED, b"")


def test_many_frames_at_once_are_passed_on_in_turns() -> None:
    reader, sink = FrameReader(), Sink()
    reader.feed(PREFACE + frame(99, b"x") * (2 * FRAMES_A_TURN + 1) + frame(98)[:5], sink)
    counts = [len(sink.seen)]
    while reader.has_more:
        reader.feed(b"", sink)
        counts.append(len(sink.seen))
    assert counts == [FRAMES_A_TURN, 2 * FRAMES_A_TURN, 2 * FRAMES_A_TURN + 1]
    reader.feed(frame(98)[5:], sink)
    assert sink.seen[-1] == (98, 0, 0, b"")
