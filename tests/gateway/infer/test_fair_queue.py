"""Turns: no lane begins more than its part between two looks at the sockets; none is forgotten, none overtakes."""

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
    """Who began what, one list for each turn of a loop."""

    def __init__(self) -> None:
        self.turns = FairQueue({"a", "b"})
        self.begun: list[list[str]] = [[]]

    def ask(self, lane: str, cost: int = 1, name: str = "") -> None:
        """As a client's connection does it."""
        if self.turns.try_start(lane, cost):
            self.begun[-1].append(name or lane)
        else:
            self.turns.enqueue(lane, cost, lambda: self._go(name or lane))

    def _go(self, name: str) -> bool:
        self.begun[-1].append(name)
        return True

    async def pass_by(self, count: int = 1) -> None:
        """So many turns go by; one that begins what waited takes two of the loop's own."""
        for _ in range(2 * count):
            self.begun.append([])
            await asyncio.sleep(0)

    @property
    def all(self) -> list[str]:
        return [each for turn in self.begun for each in turn]


def in_loop(test: Callable[[Loop], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Loop())

    asyncio.run(run())


def test_a_lane_alone_begins_its_part_and_the_rest_in_the_order_of_arrival() -> None:
    async def test(loop: Loop) -> None:
        for number in range(100):
            loop.ask("a", name=f"{number}")
        assert len(loop.all) == SOLE_FLOW_LIMIT
        await loop.pass_by(3)
        assert loop.all == [f"{number}" for number in range(100)]
        assert max(len(turn) for turn in loop.begun) == SOLE_FLOW_LIMIT

    in_loop(test)


def test_a_flooded_lane_keeps_no_other_waiting() -> None:
    async def test(loop: Loop) -> None:
        for _ in range(500):
            loop.ask("a")
        loop.ask("b")
        assert loop.begun[-1][-1] == "b"
        for _ in range(10):
            await loop.pass_by()
            loop.ask("b")
            assert loop.begun[-1][-1] == "b"
        assert max(turn.count("a") for turn in loop.begun[4:]) == FLOODED_FLOW_LIMIT, "it has company now"
        await loop.pass_by(SHARED_ROUNDS + 40)
        assert loop.all.count("a") == 500

    in_loop(test)


def test_lanes_that_wait_share_a_turn() -> None:
    async def test(loop: Loop) -> None:
        for lane in ("a", "b") * 200:
            loop.ask(lane)
        await loop.pass_by(60)
        assert loop.all.count("a") == loop.all.count("b") == 200
        later = [turn for turn in loop.begun[1:] if turn]
        assert all(len(turn) <= 2 * SHARED_LIMIT for turn in later), [len(turn) for turn in later]

    in_loop(test)


def test_what_costs_more_than_a_turn_has_goes_alone() -> None:
    async def test(loop: Loop) -> None:
        for number in range(4):
            loop.ask("a", cost=10 * SOLE_FLOW_LIMIT, name=f"{number}")
        await loop.pass_by(5)
        assert [turn for turn in loop.begun if turn] == [["0"], ["1"], ["2"], ["3"]]

    in_loop(test)


def test_names_that_nobody_knows_share_one_lane_and_leave_nothing() -> None:
    async def test(loop: Loop) -> None:
        for number in range(1000):
            loop.ask(f"nobody{number}")
        assert len(loop.all) == SOLE_FLOW_LIMIT
        await loop.pass_by(100)
        assert len(loop.all) == 1000
        assert loop.turns._started.keys() <= {UNKNOWN_FLOW}
        assert not loop.turns._waiting

    in_loop(test)


def test_who_is_gone_costs_nothing() -> None:
    async def test(loop: Loop) -> None:
        for _ in range(SOLE_FLOW_LIMIT):
            loop.ask("a")
        for _ in range(50):
            loop.turns.enqueue("a", 1, lambda: False)
        loop.ask("a", name="last")
        await loop.pass_by()
        assert loop.all[-1] == "last"

    in_loop(test)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_task_comes_when_it_is_its_turn_or_not_at_all(cancelled: bool) -> None:
    async def test(loop: Loop) -> None:
        for _ in range(SOLE_FLOW_LIMIT):
            loop.ask("a")
        mine = asyncio.create_task(loop.turns.wait_to_start("a", 4))
        await asyncio.sleep(0)
        assert not mine.done()
        if cancelled:
            mine.cancel()
        await asyncio.gather(mine, return_exceptions=True)
        assert mine.cancelled() == cancelled
        await loop.turns.wait_to_start("a", 4)
        assert not loop.turns._waiting

    in_loop(test)
