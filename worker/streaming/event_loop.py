"""An asyncio event loop that is turned by the worker's own loop, and never sleeps.

asyncio asks its selector what has come, and for how long it may sleep. This selector answers at once, and where asyncio
would sleep it ends the turn and keeps that time, for which the worker sleeps then, together with all else that it waits
for. The descriptor of the selector says that something has come for it, also by `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

TURN_LIMIT: Final = 32
"""Iterations of one turn: a coroutine that never sleeps must not keep the worker from its requests."""


class _TurnSelector(selectors.EpollSelector):
    def __init__(self, end_turn: Callable[[float | None], None]) -> None:
        super().__init__()
        self._end_turn = end_turn
        self.left = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What has come by now; ends the turn where asyncio would sleep `timeout` seconds, None for ever."""
        found = super().select(0)
        self.left -= 1
        if self.left <= 0 or (not found and (timeout is None or timeout > 0)):
            self._end_turn(0.0 if found or self.left <= 0 else timeout)
        return found


class TurnedEventLoop:
    def __init__(self) -> None:
        self._selector = _TurnSelector(self._end_turn)
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._due_s: float | None = None
        """Monotonic time at which it has something to do though nothing comes; None: never."""

    def fileno(self) -> int:
        return self._selector.fileno()

    def create_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._due_s = 0.0
        return self._loop.create_task(work)

    def wake(self) -> None:
        """Something was done from outside that its tasks wait for."""
        self._due_s = 0.0

    def is_due(self) -> bool:
        return self._due_s is not None and self._due_s <= time.monotonic()

    def sleep_s(self, limit_s: float) -> float:
        """How long it may sleep, at most `limit_s`."""
        return limit_s if self._due_s is None else min(max(self._due_s - time.monotonic(), 0.0), limit_s)

    async def next_turn(self) -> None:
        """Let this turn end, and go on in the next one."""
        self._loop.stop()
        self._due_s = 0.0
        await asyncio.sleep(0)

    def turn(self) -> None:
        """Run until all tasks wait. An exception that ends the process propagates."""
        self._selector.left = TURN_LIMIT
        self._due_s = 0.0
        self._loop.run_forever()

    def close(self) -> None:
        self._loop.close()

    def _end_turn(self, sleep_s: float | None) -> None:
        self._due_s = None if sleep_s is None else time.monotonic() + sleep_s
        self._loop.stop()
