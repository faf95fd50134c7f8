"""Set whenever something has changed; who waits for something to become so looks again at each change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class ChangeSignal(asyncio.Event):
    """One per brain."""

    async def wait_until(self, is_so: Callable[[], bool], limit_s: float | None = None) -> None:
        """Until something is so, or the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not is_so():
                    self.clear()
                    await self.wait()
