"""The forms of an answer: converted one by one, closed as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np

from mmsup.worker.execution.responses import close, is_awaited, mapped

One = dict[str, Any]


def doubled(response: One) -> One:
    return {name: np.asarray(value) * 2 for name, value in response.items()}


def test_one_none_and_many_are_converted_when_they_come() -> None:
    asked: list[int] = []

    def many() -> Iterator[One]:
        for each in range(3):
            asked.append(each)
            yield {"y": each}

    assert mapped(None, doubled) is None
    one: Any = mapped({"y": 2}, doubled)
    assert one == {"y": 4}
    found: Any = mapped(many(), doubled)
    assert next(found)["y"] == 0
    assert asked == [0]
    assert [int(each["y"]) for each in found] == [2, 4]


def test_closing_reaches_the_models_generator() -> None:
    closed: list[bool] = []

    def many() -> Iterator[One]:
        try:
            while True:
                yield {"y": 1}
        finally:
            closed.append(True)

    found: Any = mapped(many(), doubled)
    next(found)
    close(found)
    assert closed == [True]
    close(iter([1]))  # has nothing to close


def test_what_awaits_is_known_and_converted_too() -> None:
    async def later() -> One:
        return {"y": 3}

    async def many() -> AsyncIterator[One]:
        yield {"y": 1}

    async def read() -> list[int]:
        made: Any = mapped(later(), doubled)
        assert is_awaited(made)
        found = [int((await made)["y"])]
        more: Any = mapped(many(), doubled)
        assert is_awaited(more)
        return found + [int(each["y"]) async for each in more]

    assert asyncio.run(read()) == [6, 2]
    assert not is_awaited(iter([]))
