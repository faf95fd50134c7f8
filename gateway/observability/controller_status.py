"""What only the brain knows and the metrics show: states, restarts, memory. The last word holds while it is away."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from mmsup.gateway.dispatch.router import Backend
from mmsup.ipc.errors import MmsupError

WAIT_S: Final = 0.5
OLD: Final = "old"


class Facts:
    """The brain's `status`; while it is away the last one there was, which then says that it is `old`.

    Several gateways answer one scraper: none may tell what another has already overtaken, so none keeps an answer.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._last: dict[str, Any] = {}  # JSON of the status verb
        self._asked_s = 0.0
        self._turn = asyncio.Lock()

    async def now(self) -> dict[str, Any]:  # JSON of the status verb
        """The status; waits for the brain no longer than a scraper would."""
        came_s = time.monotonic()
        async with self._turn:
            if self._asked_s <= came_s:  # else it was asked while we waited: many scrapers are one question
                self._asked_s = time.monotonic()
                await self._ask()
        return self._last

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                said = await self._backend.ask("status", {})
        except (TimeoutError, MmsupError):
            self._last = {**self._last, OLD: True}
            return
        if isinstance(said, dict):
            self._last = said
