"""The order of the requests of one sequence in this gateway: the next one is sent when the last one is answered.

So whatever a request has to wait for (a load, memory, a worker that is started again), none of its sequence overtakes
it. What waits is counted as open requests of its model, which bounds it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable

from mmsup.ipc.errors import ServerError


class Turn:
    """Of one request. Left once, or more often."""

    __slots__ = ("_granted", "_key", "_turns")

    def __init__(self, turns: SequenceTurns, key: Hashable) -> None:
        self._turns = turns
        self._key = key
        self._granted: asyncio.Future[None] | None = None

    async def wait(self, deadline_ns: int, model: str) -> None:
        """Until all requests before it have left; ServerError `deadline_exceeded`, by CLOCK_MONOTONIC."""
        if self._turns.is_first(self._key, self):
            return
        self._granted = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
                await self._granted
        except TimeoutError:
            text = f"Request timeout expired behind earlier requests of its sequence of model '{model}'"
            raise ServerError("deadline_exceeded", text, model=model) from None

    def grant(self) -> None:
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)

    def leave(self) -> None:
        self._turns.leave(self._key, self)


class SequenceTurns:
    def __init__(self) -> None:
        self._by_key: dict[Hashable, deque[Turn]] = {}
        """No queue is empty; the first of each has its turn."""

    def __len__(self) -> int:
        return len(self._by_key)

    def enter(self, key: Hashable) -> Turn:
        turn = Turn(self, key)
        self._by_key.setdefault(key, deque()).append(turn)
        return turn

    def is_first(self, key: Hashable, turn: Turn) -> bool:
        return self._by_key[key][0] is turn

    def leave(self, key: Hashable, turn: Turn) -> None:
        queue = self._by_key.get(key)
        if queue is None or turn not in queue:
            return
        was_first = queue[0] is turn
        queue.remove(turn)
        if not queue:
            del self._by_key[key]
        elif was_first:
            queue[0].grant()
