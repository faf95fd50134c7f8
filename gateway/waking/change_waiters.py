"""Requests that wait for a change of routes or links."""

from __future__ import annotations

import asyncio

from mmsup.gateway.waking.cold_starts import ColdStarts


class ChangeWaiters:
    """Woken by priority, within a priority in order of arrival."""

    def __init__(self, cold_starts: ColdStarts) -> None:
        self.cold_starts = cold_starts
        """Of those that wait, the requests whose models are loaded from sleep."""
        self.priorities: dict[asyncio.Future[None], int] = {}
        cold_starts.notify = self.notify

    def notify(self) -> None:
        for future in sorted(self.priorities, key=self.priorities.__getitem__):
            if not future.done():
                future.set_result(None)
        self.priorities.clear()

    async def wait(self, timeout_s: float, priority: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.priorities[future] = priority
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await future
        except TimeoutError:
            pass
        finally:
            self.priorities.pop(future, None)
