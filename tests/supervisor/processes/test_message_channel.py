from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.supervisor.processes.message_channel import MAX_QUEUED, MessageChannel

Play = Callable[["Pair"], Awaitable[None]]


class Pair:
    """A Peer and its plain other end."""

    def __init__(self) -> None:
        near, self.far = ControlChannel.pair()
        self.heard: list[bytes] = []
        self.descriptors: list[int] = []
        self.lost = asyncio.Event()
        self.something = asyncio.Event()
        self.peer = MessageChannel(near, self._hear, self.lost.set)

    def _hear(self, data: bytes, descriptors: list[int]) -> None:
        self.heard.append(data)
        self.descriptors += descriptors
        self.something.set()


def play(act: Play) -> None:
    async def run() -> None:
        pair = Pair()
        try:
            async with asyncio.timeout(10):
                await act(pair)
        finally:
            pair.peer.close()
            pair.far.close()
            close_fds(pair.descriptors)

    asyncio.run(run())


def test_what_finds_no_room_waits_and_keeps_its_order_and_descriptors() -> None:
    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        for number in range(500):
            pair.peer.send(b"%d" % number + b"." * 4000, (write,) if number == 499 else ())
        os.close(write)
        os.close(read)
        got: list[bytes] = []
        came = 0
        while len(got) < 500:
            received = pair.far.receive()
            if received is None:
                await asyncio.sleep(0)  # let the peer write
                continue
            got.append(received[0])
            came += len(received[1])
            close_fds(received[1])
        assert came == 1
        assert [int(each.rstrip(b".")) for each in got] == list(range(500))

    play(act)


def test_a_far_end_that_closes_is_told_once() -> None:
    async def act(pair: Pair) -> None:
        pair.far.close()
        await pair.lost.wait()
        pair.peer.send(b"to nobody")

    play(act)


def test_one_that_does_not_read_is_given_up_at_a_bound() -> None:
    async def act(pair: Pair) -> None:
        for _ in range(MAX_QUEUED + 200):
            pair.peer.send(b"x" * 1000)
        await pair.lost.wait()

    play(act)


def test_what_was_said_before_the_end_is_heard_by_drain() -> None:
    async def act(pair: Pair) -> None:
        assert pair.far.send(b"last words")
        pair.far.close()
        pair.peer.drain()
        assert pair.heard == [b"last words"]

    play(act)


def test_descriptors_come_with_their_message() -> None:
    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        assert pair.far.send(b"with one", (read,))
        close_fds([read, write])
        await pair.something.wait()
        assert len(pair.descriptors) == 1

    play(act)


def test_a_closed_peer_holds_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def act(pair: Pair) -> None:
        read, write = os.pipe()
        for _ in range(300):
            pair.peer.send(b"x" * 4000, (read,))
        close_fds([read, write])

    play(act)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_far_end_sees_the_end_when_a_peer_is_closed() -> None:
    async def act(pair: Pair) -> None:
        pair.peer.close()
        try:
            pair.far.receive()
        except ChannelClosed:
            return
        raise AssertionError("it is still open")

    play(act)
