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

ALONE: Final = 32
"""Units that a lane begins at a time: inferences of little text, 50 to 100 µs each."""
SHARED: Final = 16
"""The same while other lanes are used too."""
SERIES: Final = 4
"""The same for the only lane in which somebody waits: it is flooded, and whoever else comes shall be heard soon."""
COMPANY_TURNS: Final = 64
"""Turns for which another lane is remembered."""
HOUSE: Final = "~"
"""The lane of what is asked of the server as a whole."""
STRANGERS: Final = ""
_FULL: Final = 1 << 30
Go = Callable[[], bool]
"""Begins what waited; False if nobody wants it any more."""


class Turns:
    """One per gateway process. `known`: names that have lanes of their own."""

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self._limit = ALONE
        self._company = 0
        self._begun: dict[str, int] = {}
        """Units by lane, since the last turn that was needed."""
        self._waiting: dict[str, deque[tuple[int, Go]]] = {}
        self._is_at_hand = False

    def may(self, lane: str, cost: int) -> bool:
        """Whether so many units may be begun at once; if not, `wait`."""
        begun = self._begun.get(lane)
        if begun is None:
            return self._first(lane, cost)
        if begun + cost > self._limit and begun:
            return False
        self._begun[lane] = begun + cost
        return True

    def _first(self, lane: str, cost: int) -> bool:
        lane = self._lane(lane)
        begun = self._begun.get(lane, 0)
        if begun + cost > self._limit and begun:
            return False
        self._begun[lane] = begun + cost
        return True

    def _lane(self, name: str) -> str:
        return name if name == HOUSE or name in self._known else STRANGERS

    def wait(self, lane: str, cost: int, go: Go) -> None:
        """`go` is called when it is its turn."""
        lane = self._lane(lane)
        self._waiting.setdefault(lane, deque()).append((cost, go))
        self._begun[lane] = _FULL  # nobody overtakes who waits
        if not self._is_at_hand:
            self._is_at_hand = True
            asyncio.get_running_loop().call_soon(self._look)

    async def come(self, lane: str, cost: int) -> None:
        """Returns when so many units may be begun."""
        if self.may(lane, cost):
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go() -> bool:
            if mine.done():
                return False
            mine.set_result(None)
            return True

        self.wait(lane, cost, go)
        await mine

    def _look(self) -> None:
        """Look at the sockets once more: what others began before goes out, and what came for them is taken up."""
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_at_hand = False
        self._company = COMPANY_TURNS if len(self._begun) > 1 else max(self._company - 1, 0)
        self._limit = SHARED if self._company else ALONE
        self._begun.clear()
        for lane in list(self._waiting):
            self._begin(lane)
        if self._waiting and not self._is_at_hand:
            self._is_at_hand = True
            asyncio.get_running_loop().call_soon(self._look)

    def _begin(self, lane: str) -> None:
        queue, begun = self._waiting.pop(lane), 0
        floods = len(self._waiting) + 1
        limit = SERIES if self._company and floods == 1 else max(self._limit // floods, 1)
        while queue and (not begun or begun + queue[0][0] <= limit):
            cost, go = queue.popleft()
            begun += cost if go() else 0
        if queue:
            self._waiting[lane] = queue
        self._begun[lane] = _FULL if queue else begun
