"""No flow starts more than its share between two polls of the sockets; none is forgotten, none overtakes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mmsup.gateway.infer.fair_queue import (
    FLOODED_FLOW_LIMIT,
    SHARED_LIMIT,
    SHARED_ROUNDS,
    SOLE_FLOW_LIMIT,
    UNKNOWN_FLOW,
    FairQueue,
)


class Loop:
    """Names of what was started, one list for each iteration of the event loop."""

    def __init__(self) -> None:
        self.queue = FairQueue({"a", "b"})
        self.started: list[list[str]] = [[]]

    def request(self, flow: str, cost: int = 1, name: str = "") -> None:
        """Start or enqueue a request, as a connection does."""
        if self.queue.try_start(flow, cost):
            self.started[-1].append(name or flow)
        else:
            self.queue.enqueue(flow, cost, lambda: self._start(name or flow))

    def _start(self, name: str) -> bool:
        self.started[-1].append(name)
        return True

    async def rounds(self, count: int = 1) -> None:
        """Let so many rounds pass; each takes two iterations of the event loop."""
        for _ in range(2 * count):
            self.started.append([])
            await asyncio.sleep(0)

    @property
    def all(self) -> list[str]:
        return [each for iteration in self.started for each in iteration]


def in_loop(test: Callable[[Loop], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Loop())

    asyncio.run(run())


def test_a_sole_flow_starts_its_share_and_the_rest_in_the_order_of_arrival() -> None:
    async def test(loop: Loop) -> None:
        for number in range(100):
            loop.request("a", name=f"{number}")
        assert len(loop.all) == SOLE_FLOW_LIMIT
        await loop.rounds(3)
        assert loop.all == [f"{number}" for number in range(100)]
        assert max(len(iteration) for iteration in loop.started) == SOLE_FLOW_LIMIT

    in_loop(test)


def test_a_flooded_flow_does_not_delay_others() -> None:
    async def test(loop: Loop) -> None:
        for _ in range(500):
            loop.request("a")
        loop.request("b")
        assert loop.started[-1][-1] == "b"
        for _ in range(10):
            await loop.rounds()
            loop.request("b")
            assert loop.started[-1][-1] == "b"
        assert max(iteration.count("a") for iteration in loop.started[4:]) == FLOODED_FLOW_LIMIT, (
            "another flow is in use"
        )
        await loop.rounds(SHARED_ROUNDS + 40)
        assert loop.all.count("a") == 500

    in_loop(test)


def test_waiting_flows_share_a_round() -> None:
    async def test(loop: Loop) -> None:
        for flow in ("a", "b") * 200:
            loop.request(flow)
        await loop.rounds(60)
        assert loop.all.count("a") == loop.all.count("b") == 200
        later = [iteration for iteration in loop.started[1:] if iteration]
        assert all(len(iteration) <= 2 * SHARED_LIMIT for iteration in later), [len(iteration) for iteration in later]

    in_loop(test)


def test_a_request_that_costs_more_than_a_round_allows_is_started_alone() -> None:
    async def test(loop: Loop) -> None:
        for number in range(4):
            loop.request("a", cost=10 * SOLE_FLOW_LIMIT, name=f"{number}")
        await loop.rounds(5)
        assert [iteration for iteration in loop.started if iteration] == [["0"], ["1"], ["2"], ["3"]]

    in_loop(test)


def test_unknown_names_share_one_flow_and_leave_nothing() -> None:
    async def test(loop: Loop) -> None:
        for number in range(1000):
            loop.request(f"unknown{number}")
        assert len(loop.all) == SOLE_FLOW_LIMIT
        await loop.rounds(100)
        assert len(loop.all) == 1000
        assert loop.queue.started.keys() <= {UNKNOWN_FLOW}
        assert not loop.queue._waiting

    in_loop(test)


def test_a_request_of_a_disconnected_client_costs_nothing() -> None:
    async def test(loop: Loop) -> None:
        for _ in range(SOLE_FLOW_LIMIT):
            loop.request("a")
        for _ in range(50):
            loop.queue.enqueue("a", 1, lambda: False)
        loop.request("a", name="last")
        await loop.rounds()
        assert loop.all[-1] == "last"

    in_loop(test)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_task_starts_when_the_queue_reaches_it_or_not_at_all(cancelled: bool) -> None:
    async def test(loop: Loop) -> None:
        for _ in range(SOLE_FLOW_LIMIT):
            loop.request("a")
        task = asyncio.create_task(loop.queue.wait_to_start("a", 4))
        await asyncio.sleep(0)
        assert not task.done()
        if cancelled:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() == cancelled
        await loop.queue.wait_to_start("a", 4)
        assert not loop.queue._waiting

    in_loop(test)
