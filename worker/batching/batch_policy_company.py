"""Who is likely to come: how many requests were here together of late. Pure.

What counts is concurrency, not rate. A lone caller that asks again as soon as it is answered comes often, and waiting
for company would only slow it down. Requests that ran together, and those that came while they ran, were here before
anyone of them was answered: so they are of different callers, and likely to come together again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MEMORY_RUNS: Final = 8
"""Of the last so many runs the largest company is expected again."""


class Company:
    """What the last runs met."""

    def __init__(self) -> None:
        self._met: deque[int] = deque(maxlen=MEMORY_RUNS)

    @property
    def expected(self) -> int:
        """Requests to be expected together; 0 before the first run."""
        return max(self._met, default=0)

    def met(self, together: int) -> None:
        """A run is over; so many requests took part or came before its answers went out."""
        self._met.append(together)

    def stayed_away(self) -> None:
        """A wait ended without the company that was expected: what comes next shows whether it still exists."""
        self._met.clear()
