"""Message channel: order and descriptors of queued messages, its limits, the end of the other side."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Awaitable, Callable

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.message_channel import MAX_QUEUED, MessageChannel

PairTest = Callable[["ChannelPair"], Awaitable[None]]


class ChannelPair:
    """A MessageChannel and its other end."""

    def __init__(self) -> None:
        near, self.far = ControlChannel.pair()
        self.received: list[bytes] = []
        self.descriptors: list[int] = []
        self.closed = asyncio.Event()
        self.any_message = asyncio.Event()
        self.channel = MessageChannel(near, self._on_message, self.closed.set)

    def _on_message(self, data: bytes, descriptors: list[int]) -> None:
        self.received.append(data)
        self.descriptors += descriptors
        self.any_message.set()


def run_with_pair(test: PairTest) -> None:
    async def run() -> None:
        pair = ChannelPair()
        try:
            async with asyncio.timeout(10):
                await test(pair)
        finally:
            pair.channel.close()
            pair.far.close()
            close_fds(pair.descriptors)

    asyncio.run(run())


def test_queued_messages_keep_their_order_and_descriptors() -> None:
    async def test(pair: ChannelPair) -> None:
        read, write = os.pipe()
        for number in range(500):
            pair.channel.send(b"%d" % number + b"." * 4000, (write,) if number == 499 else ())
        os.close(write)
        os.close(read)
        got: list[bytes] = []
        came = 0
        while len(got) < 500:
            message = pair.far.receive()
            if message is None:
                await asyncio.sleep(0)  # let the channel write
                continue
            got.append(message[0])
            came += len(message[1])
            close_fds(message[1])
        assert came == 1
        assert [int(each.rstrip(b".")) for each in got] == list(range(500))

    run_with_pair(test)


def test_on_closed_is_called_once_when_the_far_end_closes() -> None:
    async def test(pair: ChannelPair) -> None:
        pair.far.close()
        await pair.closed.wait()
        pair.channel.send(b"to nobody")

    run_with_pair(test)


def test_a_far_end_that_does_not_read_counts_as_closed_at_the_queue_limit() -> None:
    async def test(pair: ChannelPair) -> None:
        for _ in range(MAX_QUEUED + 200):
            pair.channel.send(b"x" * 1000)
        await pair.closed.wait()

    run_with_pair(test)


def test_drain_receives_what_was_sent_before_the_far_end_closed() -> None:
    async def test(pair: ChannelPair) -> None:
        assert pair.far.send(b"last words")
        pair.far.close()
        pair.channel.drain()
        assert pair.received == [b"last words"]

    run_with_pair(test)


def test_descriptors_come_with_their_message() -> None:
    async def test(pair: ChannelPair) -> None:
        read, write = os.pipe()
        assert pair.far.send(b"with one", (read,))
        close_fds([read, write])
        await pair.any_message.wait()
        assert len(pair.descriptors) == 1

    run_with_pair(test)


def test_a_closed_channel_holds_no_descriptor() -> None:
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = len(os.listdir("/proc/self/fd"))

    async def test(pair: ChannelPair) -> None:
        read, write = os.pipe()
        for _ in range(300):
            pair.channel.send(b"x" * 4000, (read,))
        close_fds([read, write])

    run_with_pair(test)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_far_end_sees_that_a_channel_was_closed() -> None:
    async def test(pair: ChannelPair) -> None:
        pair.channel.close()
        try:
            pair.far.receive()
        except ChannelClosed:
            return
        raise AssertionError("it is still open")

    run_with_pair(test)
