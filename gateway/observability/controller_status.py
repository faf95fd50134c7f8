"""What only the brain knows and the metrics show: states, restarts, memory. The last word holds while it is away."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from mmsup.gateway.dispatch.router import Router
from mmsup.ipc.errors import MmsupError

STATUS_WAIT_S: Final = 0.5
STALE_KEY: Final = "old"


class ControllerStatus:
    """The brain's `status`; while it is away the last one there was, which then says that it is `old`.

    Several gateways answer one scraper: none may tell what another has already overtaken, so none keeps an answer.
    """

    def __init__(self, backend: Router) -> None:
        self._router = backend
        self._last: dict[str, Any] = {}  # JSON of the status verb
        self._queried_s = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> dict[str, Any]:  # JSON of the status verb
        """The status; waits for the brain no longer than a scraper would."""
        came_s = time.monotonic()
        async with self._lock:
            if self._queried_s <= came_s:  # else it was asked while we waited: many scrapers are one question
                self._queried_s = time.monotonic()
                await self._query()
        return self._last

    async def _query(self) -> None:
        try:
            async with asyncio.timeout(STATUS_WAIT_S):
                said = await self._router.call_controller("status", {})
        except (TimeoutError, MmsupError):
            self._last = {**self._last, STALE_KEY: True}
            return
        if isinstance(said, dict):
            self._last = said
