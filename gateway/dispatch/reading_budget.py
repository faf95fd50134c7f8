"""How much of a gateway's time one worker's replies may take to be read. Pure.

Replies of honest workers take microseconds. A worker can send frames that take tens of milliseconds each, within all
bounds on their size, and as many as it likes; meanwhile no client of any model is served.
"""

from __future__ import annotations

from typing import Final

BUDGET_S: Final = 1.0
"""What may be spent at once."""
SHARE: Final = 0.5
"""What is regained, as a part of the time that passes."""
FRAME_LIMIT_S: Final = 0.05
"""Most that is charged at once: the bounds on the size of a frame let none take longer, so a longer time was the
machine's."""


FREE_FRAME_BYTES: Final = 2048
"""A frame up to this size is not charged: whatever is in it takes 0.08 ms at most to read (2-core VM)."""


class ReadingBudget:
    """One per link. Times in seconds of one monotonic clock."""

    __slots__ = ("_left_s", "_seen_s")

    def __init__(self) -> None:
        self._left_s = BUDGET_S
        self._seen_s = 0.0

    def spend(self, took_s: float, now_s: float) -> bool:
        """Charge the reading of one frame or signature; False if the worker has used up its budget."""
        left_s = self._left_s + SHARE * (now_s - self._seen_s) - min(took_s, FRAME_LIMIT_S)
        self._left_s = min(left_s, BUDGET_S)
        self._seen_s = now_s
        return left_s >= 0
