"""Data channel: frames, descriptors, a full buffer, the end of the other side."""

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


def test_frames_keep_their_boundaries_and_order(ends: tuple[DataChannel, DataChannel]) -> None:
    one, other = ends
    for number in range(100):
        assert one.send(b"%d" % number)
    for number in range(100):
        assert received(other) == b"%d" % number
    assert other.receive() is None


@pytest.mark.parametrize("with_fds", [False, True])
def test_the_last_frames_of_a_side_that_ended_without_reading_are_received(
    ends: tuple[DataChannel, DataChannel], with_fds: bool
) -> None:
    here, there = ends
    assert here.send(b"unread")
    assert there.send(b"one")
    assert there.send(b"last")
    there.close()
    first = here.receive_with_fds() if with_fds else here.receive()
    assert first is not None
    assert bytes(first[0] if isinstance(first, tuple) else first) == b"one"
    assert received(here) == b"last"
    with pytest.raises(ChannelClosed):
        here.receive()


def test_a_frame_of_the_largest_size_passes(ends: tuple[DataChannel, DataChannel]) -> None:
    frame = random.Random(1).randbytes(FRAME_LIMIT_BYTES)
    assert ends[0].send(frame)
    assert received(ends[1]) == frame


def test_send_returns_false_without_room_and_succeeds_once_the_other_side_has_read(
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


def test_descriptors_come_with_their_frame_or_are_closed(
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


def test_frames_sent_before_closing_are_received_first(ends: tuple[DataChannel, DataChannel]) -> None:
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
