"""Control channel: whole messages with descriptors, limits, the end of the other side; never blocking."""

from __future__ import annotations

import contextlib
import os
import resource

import pytest

from mmsup.ipc.transport.control_channel import (
    DESCRIPTOR_LIMIT,
    MESSAGE_LIMIT,
    ChannelClosed,
    ControlChannel,
    close_fds,
)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_messages_keep_their_boundaries_and_descriptors() -> None:
    one, other = ControlChannel.pair()
    read, write = os.pipe()
    assert one.send(b"first", [write])
    assert one.send(b"second")
    received = other.receive()
    assert received is not None
    data, (passed,) = received
    assert data == b"first"
    os.write(passed, b"!")
    assert os.read(read, 1) == b"!"
    assert other.receive() == (b"second", [])
    assert other.receive() is None
    close_fds([read, write, passed])
    one.close()
    other.close()


def test_the_largest_message_passes_an_empty_buffer() -> None:
    one, other = ControlChannel.pair()
    assert one.send(bytes(MESSAGE_LIMIT))
    received = other.receive()
    assert received is not None
    assert len(received[0]) == MESSAGE_LIMIT
    one.close()
    other.close()


def test_send_returns_false_when_the_buffer_is_full() -> None:
    one, other = ControlChannel.pair()
    sent = 0
    while one.send(bytes(60_000)):
        sent += 1
    assert 1 <= sent < 100
    assert other.receive() is not None
    assert one.send(b"again")
    one.close()
    other.close()


def test_receive_and_send_raise_channel_closed_after_the_other_side_closed() -> None:
    one, other = ControlChannel.pair()
    other.send(b"last words")
    other.close()
    assert one.receive() == (b"last words", [])
    with pytest.raises(ChannelClosed):
        one.receive()
    with pytest.raises(ChannelClosed):
        one.send(b"x")
    one.close()


def test_the_last_messages_of_a_side_that_closed_without_reading_are_received() -> None:
    here, there = ControlChannel.pair()
    with contextlib.closing(here):
        assert here.send(b"unread")
        assert there.send(b"one")
        assert there.send(b"last")
        there.close()
        assert here.receive() == (b"one", [])
        assert here.receive() == (b"last", [])
        with pytest.raises(ChannelClosed):
            here.receive()


def test_a_message_over_a_limit_is_dropped_without_a_leak() -> None:
    one, other = ControlChannel.pair()
    fd = os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors()
    one.send(b"too many", [fd] * (DESCRIPTOR_LIMIT + 20))
    one.send(b"next")
    assert other.receive() == (b"next", [])
    assert open_descriptors() == before
    os.close(fd)
    one.close()
    other.close()


def test_descriptors_are_not_inherited_by_accident() -> None:
    one, other = ControlChannel.pair()
    one.send(b"x", [0])
    received = other.receive()
    assert received is not None
    (fd,) = received[1]
    assert not os.get_inheritable(fd)
    close_fds([fd])
    one.close()
    other.close()


def test_a_message_whose_descriptors_do_not_fit_into_the_table_raises_an_error() -> None:
    one, other = ControlChannel.pair()
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    one.send(b"take them", fds)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fds.append(os.open("/dev/null", os.O_RDONLY))
        os.close(fds.pop())  # room for one of three
        with pytest.raises(OSError, match="no room"):
            other.receive()
        fds.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_fds(fds)
    one.close()
    other.close()


def test_an_end_that_was_closed_sends_nothing() -> None:
    near, far = ControlChannel.pair()
    near.close()
    with pytest.raises(ChannelClosed):
        near.send(b"late")
    far.close()
