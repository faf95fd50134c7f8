"""Compressed messages are inflated one slice in each turn of the event loop, however many calls send them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Step = Callable[[], bool]
"""Inflates one slice; whether more is to be done."""


class InflateQueue:
    """One per gateway process."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()

    def add(self, step: Step) -> None:
        """Call `step` in later turns, in turn with others, until it returns False."""
        self._steps.append(step)
        if len(self._steps) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        step = self._steps[0]
        has_more = step()
        self._steps.popleft()
        if has_more:
            self._steps.append(step)
        if self._steps:
            asyncio.get_running_loop().call_soon(self._turn)
