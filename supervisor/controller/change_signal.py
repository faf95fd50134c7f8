"""An event that is set on every change of state; `wait_until` checks its condition again at each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class ChangeSignal(asyncio.Event):
    async def wait_until(self, condition: Callable[[], bool], limit_s: float | None = None) -> None:
        """Return when the condition holds, at the latest after the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not condition():
                    self.clear()
                    await self.wait()
