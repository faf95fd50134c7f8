"""A fair queue: how much of each model's work one event-loop iteration starts when more arrives than it can serve.

One iteration takes up all requests that have arrived: with 256 clients of one model that is 256 requests, and clients
of other models wait for all of them. So between two polls of the sockets each *flow* starts a bounded amount of work;
what exceeds it waits in arrival order, and the waiting flows continue in turn. A flow is a model in a repository, or
the requests that name no model; all unknown names share one flow. A flow gets less at a time while others are in use,
and the least if it alone is flooded: then a client of another model waits for FLOODED_FLOW_LIMIT units of it.

The counts restart when something had to wait, and not in every iteration: a flow with little to do costs one lookup and
one addition for each request and, every so many requests, a wait of no length.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container
from typing import Final

SOLE_FLOW_LIMIT: Final = 32
"""Units that a flow starts per round: inferences with little JSON, 50 to 100 µs each."""
SHARED_LIMIT: Final = 16
"""The same while other flows are in use."""
FLOODED_FLOW_LIMIT: Final = 4
"""The same for the only flow in which requests wait: it is flooded, and others that arrive shall be served soon."""
SHARED_ROUNDS: Final = 64
"""Rounds for which another flow counts as in use."""
SERVER_FLOW: Final = "~"
"""The flow of requests that name no model."""
UNKNOWN_FLOW: Final = ""
_BLOCKED: Final = 1 << 30
Start = Callable[[], bool]
"""Starts a request that waited; False if its client has disconnected."""


class FairQueue:
    """One per gateway process. `known`: names that have flows of their own."""

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self.limit = SOLE_FLOW_LIMIT
        """Units of a flow before it has to wait."""
        self._shared_rounds = 0
        self.started: dict[str, int] = {}
        """Units by flow since the last round."""
        self._waiting: dict[str, deque[tuple[int, Start]]] = {}
        self._round_scheduled = False

    def try_start(self, flow: str, cost: int) -> bool:
        """Count `cost` units and return True if they may start at once; else call `enqueue`."""
        started = self.started.get(flow)
        if started is None:
            flow = self._flow_of(flow)
            started = self.started.get(flow, 0)
        if started + cost > self.limit and started:
            return False
        self.started[flow] = started + cost
        return True

    def _flow_of(self, name: str) -> str:
        return name if name == SERVER_FLOW or name in self._known else UNKNOWN_FLOW

    def enqueue(self, flow: str, cost: int, start: Start) -> None:
        """Call `start` when the queue reaches it."""
        flow = self._flow_of(flow)
        self._waiting.setdefault(flow, deque()).append((cost, start))
        self.started[flow] = _BLOCKED  # no request overtakes those that wait
        self._schedule_round()

    async def wait_to_start(self, flow: str, cost: int) -> None:
        if self.try_start(flow, cost):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def start() -> bool:
            if future.done():
                return False
            future.set_result(None)
            return True

        self.enqueue(flow, cost, start)
        await future

    def _schedule_round(self) -> None:
        """Let the loop poll the sockets first: what others started goes out, and what arrived for them is read."""
        if not self._round_scheduled:
            self._round_scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._run_round)

    def _run_round(self) -> None:
        self._round_scheduled = False
        self._shared_rounds = SHARED_ROUNDS if len(self.started) > 1 else max(self._shared_rounds - 1, 0)
        self.limit = SHARED_LIMIT if self._shared_rounds else SOLE_FLOW_LIMIT
        self.started.clear()
        for flow in list(self._waiting):
            self._start_queued(flow)
        if self._waiting:
            self._schedule_round()

    def _start_queued(self, flow: str) -> None:
        queue, started = self._waiting.pop(flow), 0
        flooded = len(self._waiting) + 1
        limit = FLOODED_FLOW_LIMIT if self._shared_rounds and flooded == 1 else max(self.limit // flooded, 1)
        while queue and (not started or started + queue[0][0] <= limit):
            cost, start = queue.popleft()
            started += cost if start() else 0
        if queue:
            self._waiting[flow] = queue
        self.started[flow] = _BLOCKED if queue else started
