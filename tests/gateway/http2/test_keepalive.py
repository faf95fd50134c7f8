"""When a silent client is pinged, and a connection ends that does not answer or is old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.keepalive import KeepaliveTimer
from mmsup.gateway.http2.outgoing import Outgoing
from mmsup.ipc.rpc.keepalive import RpcKeepalive


class Connection:
    """Remembers what was done to it, and answers pings if it shall."""

    def __init__(self, *, answers: bool = True, is_evictable: bool = False) -> None:
        self.uses = 0
        self.is_evictable = is_evictable
        self.answers = answers
        self.pings = 0
        self.done: list[str] = []
        self.changed = asyncio.Event()

    def write(self, given: bytes) -> None:
        assert given[3] == frames.PING
        self.pings += 1
        self.uses += self.answers
        self.changed.set()

    def retire(self) -> None:
        self.done.append("retire")
        self.changed.set()

    def abort(self) -> None:
        self.done.append("abort")
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def run(options: RpcKeepalive, made: Callable[[], Connection], test: Callable[[Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = made()
        timer = KeepaliveTimer(options)
        timer.start(connection, cast("Outgoing", connection))
        try:
            await test(connection)
        finally:
            timer.cancel()

    asyncio.run(main())


def test_a_silent_client_is_pinged_and_one_that_answers_stays() -> None:
    async def check(connection: Connection) -> None:
        await connection.until(lambda: connection.pings == 3)
        assert connection.done == []

    run(RpcKeepalive(time_ms=1, timeout_ms=1, max_pings_without_data=0), Connection, check)


def test_a_client_that_does_not_answer_loses_its_connection() -> None:
    async def check(connection: Connection) -> None:
        await connection.until(lambda: connection.done == ["abort"])
        assert connection.pings == 1

    run(RpcKeepalive(time_ms=1, timeout_ms=1), lambda: Connection(answers=False), check)


def test_no_more_pings_than_allowed_go_out_with_no_data_in_between() -> None:
    async def check(connection: Connection) -> None:
        await connection.until(lambda: connection.pings == 2)
        await asyncio.sleep(0.02)
        assert connection.pings == 2
        connection.uses += 1
        await connection.until(lambda: connection.pings == 4)

    run(RpcKeepalive(time_ms=1, timeout_ms=1, max_pings_without_data=2), Connection, check)


def test_without_calls_nothing_is_sent_unless_it_is_allowed() -> None:
    async def none(connection: Connection) -> None:
        await asyncio.sleep(0.02)
        assert connection.pings == 0

    run(RpcKeepalive(time_ms=1, timeout_ms=1), lambda: Connection(is_evictable=True), none)

    async def one(connection: Connection) -> None:
        await connection.until(lambda: connection.pings == 1)

    run(RpcKeepalive(time_ms=1, timeout_ms=1, without_calls=True), lambda: Connection(is_evictable=True), one)


def test_an_old_connection_takes_no_new_calls_and_ends_after_its_grace() -> None:
    async def check(connection: Connection) -> None:
        await connection.until(lambda: connection.done == ["retire", "abort"])

    run(RpcKeepalive(time_ms=0, max_age_ms=1, max_age_grace_ms=1), Connection, check)
