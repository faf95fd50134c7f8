"""Restarts a compared server when it has exited, or when a model does not answer for too long.

So a plan of faults continues after one that a server does not survive; restarts are recorded and counted.
"""

from __future__ import annotations

import asyncio

from progress import log_progress
from server import Server

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, ServerRestarted

SETTLE_S = 0.5
"""An answer this long after the start of a fault is to a request that was sent after it."""
POLL_S = 0.05
ENDED, UNAVAILABLE = "it had ended", "a model stayed away"


class Restarter:
    """The ServerOperator of one server."""

    def __init__(self, server: Server, history: History, away_s: float) -> None:
        """`away_s`: how long a model may be unavailable before the server is restarted."""
        self._server = server
        self._history = history
        self._away_s = away_s
        self._answered_s = dict.fromkeys(server.models, 0.0)
        self._lock = asyncio.Lock()

    def on_answer(self, model: str, _outcome: RequestOutcome) -> None:
        self._answered_s[model] = self._history.now()

    async def repair(self) -> None:
        """Returns when every model has answered after a fault that is injected now."""
        since_s = self._history.now() + SETTLE_S
        while min(self._answered_s.values()) < since_s:
            await asyncio.sleep(POLL_S)
            async with self._lock:
                if why := self._restart_reason(since_s):
                    await self._start_again(why)
                    since_s = self._history.now()

    def _restart_reason(self, since_s: float) -> str:
        """Why the server has to be restarted; empty if it has not."""
        if self._server.has_ended:
            return ENDED
        is_away = min(self._answered_s.values()) < since_s
        return UNAVAILABLE if is_away and self._history.now() > since_s + self._away_s else ""

    async def _start_again(self, why: str) -> None:
        began_s = self._history.now()
        await asyncio.to_thread(self._server.start_again)
        self._history.add(ServerRestarted(began_s, self._history.now(), why))
        log_progress(f"  started again at {began_s:.0f} s, as {why}; it took {self._history.now() - began_s:.1f} s")
