"""Frames between the gRPC front process and a gateway."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsup.ipc.rpc.relay_frames import DATA, DATA_BYTES, BrokenRelay, RelayReader, frame, grant, granted_bytes

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.binary(max_size=50)), max_size=8)


@given(FRAMES, st.lists(st.integers(0, 500), max_size=8))
def test_frames_are_the_same_wherever_they_are_cut(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    whole = b"".join(frame(*each) for each in frames)
    places = sorted(min(each, len(whole)) for each in cuts)
    reader, found = RelayReader(), list[tuple[int, int, bytes]]()
    for at, end in zip([0, *places], [*places, len(whole)], strict=True):
        reader.feed(whole[at:end], lambda *each: found.append(each))
    assert found == frames


def test_a_frame_that_is_too_large_is_refused_by_its_head() -> None:
    RelayReader().feed(frame(DATA, 1, bytes(DATA_BYTES)), lambda *_: None)
    with pytest.raises(BrokenRelay):
        RelayReader().feed(frame(DATA, 1, bytes(DATA_BYTES + 1))[:9], lambda *_: None)


def test_a_grant_has_one_size() -> None:
    found = list[bytes]()
    RelayReader().feed(grant(1, 77), lambda _kind, _call, payload: found.append(payload))
    assert granted_bytes(found[0]) == 77
    with pytest.raises(BrokenRelay):
        granted_bytes(b"123")
