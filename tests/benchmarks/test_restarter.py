"""A server that exits, or whose model stays unavailable, is restarted; one that recovers by itself is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from restarter import ENDED, UNAVAILABLE, Restarter

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


def restarts(server: Stub, away_s: float, *, answers: set[str]) -> list[str]:
    """The reasons of its restarts, when these models always answer and the others only after a restart."""
    history = History()

    async def run() -> None:
        restarter = Restarter(cast(Any, server), history, away_s)  # all that it needs of a server
        answering = set(answers)
        server.on_start = lambda: answering.update(server.models)

        async def answer() -> None:
            while True:
                for each in answering.copy():
                    restarter.on_answer(each, RIGHT)
                await asyncio.sleep(0.01)

        answers_come = asyncio.create_task(answer())
        async with asyncio.timeout(30.0):
            await restarter.repair()
        answers_come.cancel()

    asyncio.run(run())
    return [each.why for each in history.records if isinstance(each, ServerRestarted)]


def test_a_server_that_answers_is_not_restarted() -> None:
    assert restarts(Stub(), 10.0, answers={"a", "b"}) == []


def test_a_server_that_has_exited_is_restarted_at_once() -> None:
    assert restarts(Stub(has_ended=True), 1000.0, answers={"a"}) == [ENDED]


def test_a_server_is_restarted_after_a_model_was_unavailable_for_too_long() -> None:
    assert restarts(Stub(), 0.2, answers={"a"}) == [UNAVAILABLE]
