"""A server that ends, or whose model stays away, is started again; one that comes back by itself is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from caretaker import ENDED, UNAVAILABLE, Restarter

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, ServerRestarted

RIGHT = RequestOutcome(0.0, 1, "right")


class Stub:
    """A server of two models."""

    models = ("a", "b")

    def __init__(self, *, has_ended: bool = False) -> None:
        self.has_ended = has_ended
        self.on_start: Callable[[], None] = lambda: None

    def start_again(self) -> None:
        self.has_ended = False
        self.on_start()


def tended(server: Stub, away_s: float, *, answers: set[str]) -> list[str]:
    """Why it was started again, when these models answer all the time and the others once it was."""
    history = History()

    async def tend() -> None:
        caretaker = Restarter(cast(Any, server), history, away_s)  # all that it needs of a server
        answering = set(answers)
        server.on_start = lambda: answering.update(server.models)

        async def answer() -> None:
            while True:
                for each in answering.copy():
                    caretaker.on_answer(each, RIGHT)
                await asyncio.sleep(0.01)

        answers_come = asyncio.create_task(answer())
        async with asyncio.timeout(30.0):
            await caretaker.repair()
        answers_come.cancel()

    asyncio.run(tend())
    return [each.why for each in history.records if isinstance(each, ServerRestarted)]


def test_a_server_that_answers_is_left_alone() -> None:
    assert tended(Stub(), 10.0, answers={"a", "b"}) == []


def test_a_server_that_has_ended_is_started_again_at_once() -> None:
    assert tended(Stub(has_ended=True), 1000.0, answers={"a"}) == [ENDED]


def test_a_model_that_stays_away_is_waited_for_and_then_its_server_is_started_again() -> None:
    assert tended(Stub(), 0.2, answers={"a"}) == [UNAVAILABLE]
