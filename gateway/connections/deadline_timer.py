"""A deadline that may be moved for every request without making a new timer for each of them.

A timer that fires too early is cheaper than one per request: when it fires before the deadline, it is set again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class DeadlineTimer:
    """One deadline; `deadline_s` (of the loop's clock) may be moved later by assignment."""

    __slots__ = ("_fires_s", "_handle", "_loop", "_on_expired", "deadline_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_expired: Callable[[], None]) -> None:
        self._loop = loop
        self._on_expired = on_expired
        self._handle: asyncio.Handle | None = None
        self._fires_s = self.deadline_s = 0.0

    def set(self, after_s: float) -> None:
        """Expire after this time, instead of at the previous deadline."""
        self.deadline_s = self._loop.time() + after_s
        if self._handle is not None:
            if self._fires_s <= self.deadline_s:
                return
            self._handle.cancel()
        self._schedule()

    def cancel(self) -> None:
        """Never expire again; the callback is released."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._on_expired = lambda: None

    def _schedule(self) -> None:
        self._fires_s = self.deadline_s  # kept here: the handle of a uvloop timer that is already due has no `when`
        self._handle = self._loop.call_at(self.deadline_s, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self._loop.time() < self.deadline_s:
            self._schedule()
        else:
            self._on_expired()
