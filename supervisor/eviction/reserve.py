"""How much of a budget is left free for the next loads, so that they need not wait until others have gone. Pure.

A reserve holds a few models less. It is worth that only where models are asked for in turns that do not fit together,
so that somebody goes for each load anyway: while those that were asked for within ASKED_S need more than there is. And
only for models that are small against the budget: of large ones it would hold none at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Final

ASKED_S: Final = 30.0
LOADS: Final = 2
"""So many of the usual size have room: others begin to go when one of them is taken, and are gone in 20 to 60 ms."""
MOST_SHARE: Final = 1 / 16
"""Of the budget."""


def reserve_bytes(asked: Sequence[int], room_bytes: int, budget_bytes: int) -> int:
    """`asked`: what each model needs that may go for others, and was asked for within ASKED_S. `room_bytes`: what they
    may hold together, the part of the budget that nobody else holds."""
    if sum(asked) <= room_bytes:
        return 0
    reserve = round(LOADS * mean(asked))
    return reserve if reserve <= budget_bytes * MOST_SHARE else 0
