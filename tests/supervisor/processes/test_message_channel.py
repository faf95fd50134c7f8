from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.supervisor.processes.message_channel import MAX_QUEUED, MessageChannel

Play = Callable[["Pair"], Awaitable[None]]


class Pair:
    """A channel and its plain far end."""

    def __init__(self) -> None:
        near, self.far = ControlChannel.pair()
        self.received: list[bytes] = []
        self.descriptors: list[int] = []
        self.closed = asyncio.Event()
        self.something = asyncio.Event()
        self.channel = MessageChannel(near, self._on_message, self.closed.set)

    def _on_message(self, data: bytes, descriptors: list[int]) -> None:
        self.received.append(data)
        self.descriptors += descriptors
        self.something.set()


def play(act: Play) -> None:
    async def run() -> None:
        pair = Pair()
        try:
            async with asyncio.timeout(10):
                await act(pair)
        finally:
            pair.channel.close()
            pair.far.close()
            close_fds(pair.descriptors)

    asyncio.run(run())


def test_messages_without_room_wait_and_keep_their_order_and_descriptors() -> None:
    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        for number in range(500):
            pair.channel.send(b"%d" % number + b"." * 4000, (write,) if number == 499 else ())
        os.close(write)
        os.close(read)
        got: list[bytes] = []
        came = 0
        while len(got) < 500:
            received = pair.far.receive()
            if received is None:
                await asyncio.sleep(0)  # let the channel write
                continue
            got.append(received[0])
            came += len(received[1])
            close_fds(received[1])
        assert came == 1
        assert [int(each.rstrip(b".")) for each in got] == list(range(500))

    play(act)


def test_a_far_end_that_closes_is_reported_once() -> None:
    async def act(pair: Pair) -> None:
        pair.far.close()
        await pair.closed.wait()
        pair.channel.send(b"to nobody")

    play(act)


def test_a_far_end_that_does_not_read_is_given_up_at_a_limit() -> None:
    async def act(pair: Pair) -> None:
        for _ in range(MAX_QUEUED + 200):
            pair.channel.send(b"x" * 1000)
        await pair.closed.wait()

    play(act)


def test_drain_receives_what_was_sent_before_the_far_end_closed() -> None:
    async def act(pair: Pair) -> None:
        assert pair.far.send(b"last words")
        pair.far.close()
        pair.channel.drain()
        assert pair.received == [b"last words"]

    play(act)


def test_descriptors_arrive_with_their_message() -> None:
    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        assert pair.far.send(b"with one", (read,))
        close_fds([read, write])
        await pair.something.wait()
        assert len(pair.descriptors) == 1

    play(act)


def test_a_closed_channel_holds_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        for _ in range(300):
            pair.channel.send(b"x" * 4000, (read,))
        close_fds([read, write])

    play(act)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_far_end_sees_that_a_channel_is_closed() -> None:
    async def act(pair: Pair) -> None:
        pair.channel.close()
        try:
            pair.far.receive()
        except ChannelClosed:
            return
        raise AssertionError("it is still open")

    play(act)
