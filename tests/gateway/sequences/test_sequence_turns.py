"""Requests of one sequence go one after the other, in the order in which they came."""

from __future__ import annotations

import asyncio
import time

import pytest

from mmsup.gateway.sequences.sequence_turns import SequenceTurns
from mmsup.ipc.errors import ServerError

HOUR_NS = 3600 * 10**9


def test_each_waits_for_all_before_it_and_other_sequences_for_none() -> None:
    async def walk() -> None:
        turns, order = SequenceTurns(), list[int]()
        made = [turns.enter("s") for _ in range(3)]

        async def run(number: int) -> None:
            await made[number].wait(time.monotonic_ns() + HOUR_NS, "m")
            order.append(number)
            await asyncio.sleep(0)
            made[number].leave()

        await asyncio.gather(*(run(number) for number in (2, 1, 0)))
        assert order == [0, 1, 2]
        await turns.enter("t").wait(time.monotonic_ns() + HOUR_NS, "m")
        assert len(turns) == 1

    asyncio.run(walk())


def test_one_that_leaves_before_its_turn_is_passed_over() -> None:
    async def walk() -> None:
        turns = SequenceTurns()
        first, second, third = (turns.enter("s") for _ in range(3))
        waiting = asyncio.create_task(third.wait(time.monotonic_ns() + HOUR_NS, "m"))
        await asyncio.sleep(0)
        second.leave()
        second.leave()
        first.leave()
        await waiting
        third.leave()
        assert len(turns) == 0

    asyncio.run(walk())


def test_a_deadline_that_passes_before_the_turn_is_an_error() -> None:
    async def walk() -> None:
        turns = SequenceTurns()
        turns.enter("s")
        with pytest.raises(ServerError, match="behind earlier requests of its sequence") as caught:
            await turns.enter("s").wait(time.monotonic_ns(), "m")
        assert caught.value.code == "deadline_exceeded"

    asyncio.run(walk())
