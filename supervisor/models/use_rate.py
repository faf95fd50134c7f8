"""How often a model is used: in how many of the last seconds it had a request. Pure.

Seconds are counted, not requests: a load spares one wait, however many requests come in the same second, and a burst
must not keep a model for an hour. Two averages are kept, one that follows what has become popular within half a minute,
one that remembers what is asked for steadily; the larger one counts. benchmarks/eviction_policies.py compares it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HALF_LIVES_S: Final = (30.0, 600.0)
_WEIGHTS: Final = tuple(1 - 0.5 ** (1 / each) for each in HALF_LIVES_S)
"""Of one second: one that is used in every second has the rate 1."""


@dataclass(frozen=True, slots=True)
class UseRate:
    recent: float = 0.0
    lasting: float = 0.0
    at_s: float = 0.0
    """The last second that was counted, CLOCK_MONOTONIC."""

    def used(self, now_s: float) -> UseRate:
        """With a use now; those within a second of the one that was counted last are the same."""
        if self.recent and now_s - self.at_s < 1.0:
            return self
        recent, lasting = (each + weight for each, weight in zip(self._decayed(now_s), _WEIGHTS, strict=True))
        return UseRate(min(recent, 1.0), min(lasting, 1.0), now_s)

    def at(self, now_s: float) -> float:
        """From 0 to 1: the share of the seconds of late in which it was used."""
        return max(self._decayed(now_s))

    def _decayed(self, now_s: float) -> tuple[float, float]:
        age_s = max(now_s - self.at_s, 0.0)
        recent_s, lasting_s = HALF_LIVES_S
        return self.recent * 0.5 ** (age_s / recent_s), self.lasting * 0.5 ** (age_s / lasting_s)
