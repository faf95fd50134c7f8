"""Waits until gateways have applied what they were sent: barriers of all, the sync of a new one, the drain.

Messages to a gateway are applied in order, so the answer to a Ping says that all before it has been applied. No gateway
is waited for longer than the limit, nor after its exit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mmsup.ipc.messages.gateway_control import DrainGateway, Ping
from mmsup.supervisor.gateways.gateway_process import GatewayProcess, GatewayRole
from mmsup.supervisor.gateways.pool import GatewayPool


@dataclass(slots=True, eq=False)
class _PendingBarrier:
    numbers: set[int]
    """Of the gateways whose answer is awaited."""
    on_done: Callable[[], None]
    timer: asyncio.TimerHandle


class GatewayBarriers:
    def __init__(self, pool: GatewayPool) -> None:
        self._pool = pool
        self._pings = 0
        self._pending: dict[int, _PendingBarrier] = {}
        self._syncing: dict[int, GatewayProcess] = {}
        self._draining: set[int] = set()
        self._drained = asyncio.Event()

    def add(self, limit_s: float, on_done: Callable[[], None]) -> None:
        """Call `on_done` once, when all gateways have applied what they were sent so far, or after the limit."""
        numbers = {each.number for each in self._pool.processes() if each.has_answered}
        loop = asyncio.get_running_loop()
        if not numbers:
            loop.call_soon(on_done)
            return
        self._pings += 1
        timer = loop.call_later(limit_s, self._finish, self._pings)
        self._pending[self._pings] = _PendingBarrier(numbers, on_done, timer)
        self._pool.broadcast(Ping(self._pings))

    async def wait_until_applied(self, limit_s: float) -> None:
        done = asyncio.Event()
        self.add(limit_s, done.set)
        await done.wait()

    async def drain(self, limit_s: float) -> bool:
        """Have the gateways refuse new requests and finish those that they have accepted; whether all have."""
        # One that an earlier controller configured, and that has not answered this one, has accepted requests as well.
        self._draining = {
            each.number
            for each in self._pool.processes()
            if each.process is not None and each.role is not GatewayRole.STANDBY
        }
        self._drained.clear()
        if not self._draining:
            return True
        self._pool.broadcast(DrainGateway())
        try:
            async with asyncio.timeout(limit_s):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    def start_sync(self, gateway: GatewayProcess) -> None:
        """A gateway was sent the whole state: note when it has applied it."""
        self._pings += 1
        self._syncing[self._pings] = gateway
        gateway.send(Ping(self._pings))

    def on_pong(self, gateway: GatewayProcess, number: int) -> None:
        if self._syncing.get(number) is gateway:
            del self._syncing[number]
            gateway.synced = True
            self._pool.on_change()
        self._arrive(number, gateway)

    def on_drained(self, gateway: GatewayProcess) -> None:
        self._draining.discard(gateway.number)
        if not self._draining:
            self._drained.set()

    def on_exited(self, gateway: GatewayProcess) -> None:
        self._syncing = {number: each for number, each in self._syncing.items() if each is not gateway}
        for number in list(self._pending):
            self._arrive(number, gateway)
        self.on_drained(gateway)

    def close(self) -> None:
        for pending in self._pending.values():
            pending.timer.cancel()

    def _arrive(self, number: int, gateway: GatewayProcess) -> None:
        pending = self._pending.get(number)
        if pending is not None:
            pending.numbers.discard(gateway.number)
            if not pending.numbers:
                self._finish(number)

    def _finish(self, number: int) -> None:
        pending = self._pending.pop(number)
        pending.timer.cancel()
        pending.on_done()
