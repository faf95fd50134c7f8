"""What only the brain knows and the metrics show: states, restarts, memory. The last word holds while it is away."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from mmsup.gateway.backend import Backend
from mmsup.ipc.errors import MmsupError

WAIT_S: Final = 0.5
FRESH_S: Final = 0.5
"""Many scrapers are one question."""


class Facts:
    """The brain's `status`, at most a moment old, or the last one there was."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._last: dict[str, Any] = {}  # JSON of the status verb
        self._asked_s = -FRESH_S
        self._turn = asyncio.Lock()

    async def now(self) -> dict[str, Any]:  # JSON of the status verb
        """The status; waits for the brain no longer than a scraper would."""
        async with self._turn:
            if time.monotonic() - self._asked_s >= FRESH_S:
                await self._ask()
                self._asked_s = time.monotonic()
        return self._last

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                said = await self._backend.ask("status", {})
        except (TimeoutError, MmsupError):
            return
        if isinstance(said, dict):
            self._last = said
