"""Who is likely to come: how many requests were here together of late. Pure.

What counts is concurrency, not rate. A lone caller that asks again as soon as it is answered comes often, and waiting
for company would only slow it down. Requests that ran together, and those that came while they ran, were here before
anyone of them was answered: so they are of different callers, and likely to come together again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_BATCHES: Final = 8
"""Of the last so many runs the largest company is expected again."""


class ConcurrencyEstimate:
    """What the last runs met."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WINDOW_BATCHES)

    @property
    def expected(self) -> int:
        """Requests to be expected together; 0 before the first run."""
        return max(self._recent, default=0)

    def record(self, together: int) -> None:
        """A run is over; so many requests took part or came before its answers went out."""
        self._recent.append(together)

    def reset(self) -> None:
        """A wait ended without the company that was expected: what comes next shows whether it still exists."""
        self._recent.clear()
