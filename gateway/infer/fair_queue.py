"""Whose request is begun when, while more come than one loop can serve.

A turn of the loop takes up all that has come: with 256 clients of one model that is 256 requests, and whoever calls
another model waits for all of them. So between two looks at the sockets a *lane* begins a bounded amount of work, and
what is beyond it waits, first come first served; the lanes that wait go on in turn. A lane is a model that the
repositories hold, or what else may be asked for; all that strangers make up shares one. A lane that has company gets
less at a time, and one that alone is flooded the least: who comes for another waits for SERIES units of it.

The counts begin anew when somebody had to wait, and not at every turn: a lane with little to do costs one look-up and
one addition for each request, and, every so many requests, a wait of no length.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container
from typing import Final

SOLE_FLOW_LIMIT: Final = 32
"""Units that a lane begins at a time: inferences of little text, 50 to 100 µs each."""
SHARED_LIMIT: Final = 16
"""The same while other lanes are used too."""
FLOODED_FLOW_LIMIT: Final = 4
"""The same for the only lane in which somebody waits: it is flooded, and whoever else comes shall be heard soon."""
SHARED_ROUNDS: Final = 64
"""Turns for which another lane is remembered."""
SERVER_FLOW: Final = "~"
"""The lane of what is asked of the server as a whole."""
UNKNOWN_FLOW: Final = ""
_BLOCKED: Final = 1 << 30
Start = Callable[[], bool]
"""Begins what waited; False if nobody wants it any more."""


class FairQueue:
    """One per gateway process. `known`: names that have lanes of their own."""

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self._limit = SOLE_FLOW_LIMIT
        self._shared_rounds = 0
        self._started: dict[str, int] = {}
        """Units by lane, since the last turn that was needed."""
        self._waiting: dict[str, deque[tuple[int, Start]]] = {}
        self._round_scheduled = False

    def try_start(self, flow: str, cost: int) -> bool:
        """Whether so many units may be begun at once; if not, `wait`."""
        begun = self._started.get(flow)
        if begun is None:
            return self._start_first(flow, cost)
        if begun + cost > self._limit and begun:
            return False
        self._started[flow] = begun + cost
        return True

    def _start_first(self, lane: str, cost: int) -> bool:
        lane = self._flow_of(lane)
        begun = self._started.get(lane, 0)
        if begun + cost > self._limit and begun:
            return False
        self._started[lane] = begun + cost
        return True

    def _flow_of(self, name: str) -> str:
        return name if name == SERVER_FLOW or name in self._known else UNKNOWN_FLOW

    def enqueue(self, lane: str, cost: int, go: Start) -> None:
        """`go` is called when it is its turn."""
        lane = self._flow_of(lane)
        self._waiting.setdefault(lane, deque()).append((cost, go))
        self._started[lane] = _BLOCKED  # nobody overtakes who waits
        if not self._round_scheduled:
            self._round_scheduled = True
            asyncio.get_running_loop().call_soon(self._schedule_round)

    async def wait_to_start(self, lane: str, cost: int) -> None:
        """Returns when so many units may be begun."""
        if self.try_start(lane, cost):
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go() -> bool:
            if mine.done():
                return False
            mine.set_result(None)
            return True

        self.enqueue(lane, cost, go)
        await mine

    def _schedule_round(self) -> None:
        """Look at the sockets once more: what others began before goes out, and what came for them is taken up."""
        asyncio.get_running_loop().call_soon(self._run_round)

    def _run_round(self) -> None:
        self._round_scheduled = False
        self._shared_rounds = SHARED_ROUNDS if len(self._started) > 1 else max(self._shared_rounds - 1, 0)
        self._limit = SHARED_LIMIT if self._shared_rounds else SOLE_FLOW_LIMIT
        self._started.clear()
        for lane in list(self._waiting):
            self._start_queued(lane)
        if self._waiting and not self._round_scheduled:
            self._round_scheduled = True
            asyncio.get_running_loop().call_soon(self._schedule_round)

    def _start_queued(self, lane: str) -> None:
        queue, begun = self._waiting.pop(lane), 0
        floods = len(self._waiting) + 1
        limit = FLOODED_FLOW_LIMIT if self._shared_rounds and floods == 1 else max(self._limit // floods, 1)
        while queue and (not begun or begun + queue[0][0] <= limit):
            cost, go = queue.popleft()
            begun += cost if go() else 0
        if queue:
            self._waiting[lane] = queue
        self._started[lane] = _BLOCKED if queue else begun
