"""Reads links in an event loop of the model's own, while its code awaits calls there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmsup.worker.calls.transport import CallLink, CallTransport

if TYPE_CHECKING:
    import asyncio  # takes 30 ms of a start

WAIT_MS: Final = 200
"""Between two heartbeats while calls are waited for."""
RETRY_MS: Final = 2
"""Until a frame is offered again that the link had no room for."""


class LinkReader:
    """The worker's own loop does not run meanwhile: it waits for the end of the run."""

    def __init__(self, look: Callable[[CallLink], bool]) -> None:
        """`look` reads what has come over a link, and sends what waits; true if something still does."""
        self._look = look
        self._links: dict[CallLink, int] = {}
        """With the number of calls that are open there."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, loop: asyncio.AbstractEventLoop, transport: CallTransport, link: CallLink) -> None:
        """One more call is awaited."""
        count = self._links.get(link, 0)
        self._links[link] = count + 1
        if not count:
            loop.add_reader(link.fileno(), self._look, link)
        if self._timer is None:
            self._beat(loop, transport)

    def remove(self, loop: asyncio.AbstractEventLoop, link: CallLink) -> None:
        self._links[link] -= 1
        if self._links[link]:
            return
        del self._links[link]
        loop.remove_reader(link.fileno())
        if not self._links and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self, loop: asyncio.AbstractEventLoop, transport: CallTransport) -> None:
        """Looks at all links too: a synchronous call beside may have read what woke none of them."""
        transport.beat()
        waits = [self._look(link) for link in list(self._links)]
        delay_s = RETRY_MS / 1000 if any(waits) else transport.poll_s or WAIT_MS / 1000
        self._timer = loop.call_later(delay_s, self._beat, loop, transport)
