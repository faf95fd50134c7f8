"""The data link over a socket pair: what fits goes, what does not waits, an end is an end."""

from __future__ import annotations

import os
import random
import select
from collections.abc import Iterator

import pytest

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, DataChannel


@pytest.fixture
def ends() -> Iterator[tuple[DataChannel, DataChannel]]:
    one, other = ControlChannel.pair()
    made = DataChannel(one.detach()), DataChannel(other.detach())
    yield made
    for each in made:
        each.close()


def received(end: DataChannel) -> bytes | None:
    frame = end.receive()
    return None if frame is None else bytes(frame)


def test_frames_keep_their_borders_and_their_order(ends: tuple[DataChannel, DataChannel]) -> None:
    one, other = ends
    for number in range(100):
        assert one.send(b"%d" % number)
    for number in range(100):
        assert received(other) == b"%d" % number
    assert other.receive() is None


def test_a_frame_of_the_limit_passes(ends: tuple[DataChannel, DataChannel]) -> None:
    frame = random.Random(1).randbytes(FRAME_LIMIT_BYTES)
    assert ends[0].send(frame)
    assert received(ends[1]) == frame


def test_what_has_no_room_is_said_at_once_and_goes_when_the_other_side_has_read(
    ends: tuple[DataChannel, DataChannel],
) -> None:
    one, other = ends
    frame = bytes(100_000)
    sent = 0
    while one.send(frame):
        sent += 1
    assert sent
    poller = select.poll()
    poller.register(one.fileno(), select.POLLOUT)
    assert not poller.poll(0)
    for _ in range(sent):
        assert other.receive() is not None
    assert poller.poll(1000)
    assert one.send(frame)


def test_descriptors_come_with_their_frame_and_are_closed_where_nobody_wants_them(
    ends: tuple[DataChannel, DataChannel],
) -> None:
    one, other = ends
    read, write = os.pipe()
    assert one.send(b"take it", [write])
    assert one.send(b"no, thanks", [write])
    os.close(write)
    packet = other.receive_with_fds()
    assert packet is not None
    frame, (got,) = packet
    assert bytes(frame) == b"take it"
    assert not os.get_inheritable(got)
    os.write(got, b"x")
    os.close(got)
    assert os.read(read, 2) == b"x"
    assert received(other) == b"no, thanks"
    assert os.read(read, 2) == b"", "the second copy is closed"
    os.close(read)


def test_what_was_sent_before_the_end_is_read_before_the_end(ends: tuple[DataChannel, DataChannel]) -> None:
    one, other = ends
    assert one.send(b"last words")
    one.close()
    assert received(other) == b"last words"
    with pytest.raises(ChannelClosed):
        other.receive()
    with pytest.raises(ChannelClosed):
        other.receive_with_fds()
    with pytest.raises(ChannelClosed):
        other.send(b"anyone?")
