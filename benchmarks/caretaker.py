"""Who looks after a server that is compared: it is started again when it has ended, or when a model stays away.

So a plan goes on after a fault that a server does not survive; each time is counted, with what its clients saw.
"""

from __future__ import annotations

import asyncio

from progress import log_progress
from server import Server

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, ServerRestarted

SETTLE_S = 0.5
"""What is answered so long after a fault began was asked of whoever survived it."""
POLL_S = 0.05
ENDED, UNAVAILABLE = "it had ended", "a model stayed away"


class Restarter:
    """Of one server; a `Tender` of chaos's."""

    def __init__(self, server: Server, history: History, away_s: float) -> None:
        """`away_s`: how long a model may be away before somebody acts."""
        self._server = server
        self._history = history
        self._away_s = away_s
        self._answered_s = dict.fromkeys(server.models, 0.0)
        self._lock = asyncio.Lock()

    def on_answer(self, model: str, _outcome: RequestOutcome) -> None:
        """A model gave a right answer."""
        self._answered_s[model] = self._history.now()

    async def repair(self) -> None:
        """Returns when every model has answered after a fault that begins now."""
        since_s = self._history.now() + SETTLE_S
        while min(self._answered_s.values()) < since_s:
            await asyncio.sleep(POLL_S)
            async with self._lock:
                if why := self._restart_reason(since_s):
                    await self._start_again(why)
                    since_s = self._history.now()

    def _restart_reason(self, since_s: float) -> str:
        """Why it has to be started again; empty if it has not."""
        if self._server.has_ended:
            return ENDED
        is_away = min(self._answered_s.values()) < since_s
        return UNAVAILABLE if is_away and self._history.now() > since_s + self._away_s else ""

    async def _start_again(self, why: str) -> None:
        began_s = self._history.now()
        await asyncio.to_thread(self._server.start_again)
        self._history.add(ServerRestarted(began_s, self._history.now(), why))
        log_progress(f"  started again at {began_s:.0f} s, as {why}; it took {self._history.now() - began_s:.1f} s")
