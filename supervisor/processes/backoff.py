"""When a worker that ended is tried again: a pure function of its past ends and the time.

The curve: 0, 0.5, 1, 2, 4 … 60 s, each with a jitter of ±20 %, back to 0 after 600 s of health. Given up are more than
5 deaths in 60 s, or 5 failed loads in a row; then one half-open probe every 300 s (or a load by hand, which begins a
new history). A probe that dies before it has served for 60 s gives up again at once.

Brains and gateways follow another curve, for ever: the same up to 5 s, back to 0 after 10 s. While one of them is away
nothing is mended, or fewer are served, and what made it end was most often not of its own making.

A history belongs to one content of one model version. Nothing is ever counted against another model. With several
instances, bounds and curve stretch by their number: all of them dying at once is one blow, not many.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 0.5
CEILING_S: Final = 60.0
JITTER: Final = 0.2
HEALTHY_S: Final = 600.0
SERVER_CEILING_S: Final = 5.0
SERVER_HEALTHY_S: Final = 10.0
"""Of the server's own parts: enough for one that is broken to leave the machine to the others."""
PERIOD_S: Final = 60.0
EXITS_IN_PERIOD: Final = 5
LOADS_IN_A_ROW: Final = 5
PROBE_AFTER_S: Final = 300.0
MAX_EXITS: Final = 64
"""Ends worth keeping of one instance; more can change no answer."""


@dataclass(frozen=True, slots=True)
class Exit:
    """One end of one life. Times are monotonic seconds."""

    at_s: float
    served_s: float
    """How long it had been ready; 0 is a load that failed."""
    was_probe: bool = False
    """It was the one try of a model that had been given up."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after so long."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Try again only as a probe. `code` is of the catalogue in ipc/errors.py."""

    code: str
    reason: str


NextTry = Retry | GiveUp


def next_try(past: Sequence[Exit], now_s: float, rng: random.Random, instances: int = 1) -> NextTry:
    """What follows the last of `past`, oldest first, which must not be empty."""
    assert past, "nothing has ended"
    loads = _failed_loads_in_a_row(past)
    if loads >= LOADS_IN_A_ROW * instances:
        return GiveUp("model_failed", f"{loads} loads failed in a row")
    deaths = sum(end.at_s > now_s - PERIOD_S for end in past)
    if deaths > EXITS_IN_PERIOD * instances:
        return GiveUp("crash_loop", f"{deaths} deaths in {PERIOD_S:g} s")
    last = past[-1]
    if last.was_probe and last.served_s < PERIOD_S:
        return GiveUp("crash_loop" if last.served_s else "model_failed", "the probe after giving up died too")
    return Retry(delay_s((exits_since_healthy(past) - 1) // instances, rng))


def delay_s(step: int, rng: random.Random, ceiling_s: float = CEILING_S) -> float:
    """The curve: how long to wait before try number `step`, which counts from 0."""
    if step <= 0:
        return 0.0
    # The exponent is bounded before it is used: 2.0 ** 2000 is an error, not infinity.
    return min(ceiling_s, FIRST_S * 2.0 ** min(step - 1, 16)) * rng.uniform(1 - JITTER, 1 + JITTER)


def server_delay_s(past: Sequence[Exit], rng: random.Random) -> float:
    """How long to wait before the successor of a brain or a gateway; `past` as of a worker."""
    return delay_s(exits_since_healthy(past, SERVER_HEALTHY_S) - 1, rng, SERVER_CEILING_S)


def _failed_loads_in_a_row(past: Sequence[Exit]) -> int:
    count = 0
    for end in reversed(past):
        if end.served_s > 0:
            break
        count += 1
    return count


def exits_since_healthy(past: Sequence[Exit], healthy_s: float = HEALTHY_S) -> int:
    """Ends in this bad time: a long healthy life begins a new one, of which its own end is the first."""
    count = 0
    for end in reversed(past):
        count += 1
        if end.served_s >= healthy_s:
            break
    return count
