"""Exponential backoff between restarts of a child process: pure functions of its past exits. Standard library only.

Workers wait 0, 0.5, 1, 2, 4 ... 60 s, each with a jitter of 20 %, and start again at 0 after 600 s of health. When a
model is given up instead is decided in instances/restart_policy.py.

The controller and the gateways wait 5 s at most, start again at 0 after 10 s of health, and are never given up: while
the controller is away no worker is restarted, and the cause of its exit is rarely its own.
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
"""For the server's own processes: long enough for a broken one to leave the machine to the others."""
MAX_EXITS: Final = 64
"""Exits to keep of one process; older ones change no delay."""


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit of a process. Times are monotonic seconds."""

    at_s: float
    served_s: float
    """How long it had been ready; 0 is a load that failed."""
    was_probe: bool = False
    """It was the single try of a model that had been given up."""


def delay_s(step: int, rng: random.Random, ceiling_s: float = CEILING_S) -> float:
    """How long to wait before restart number `step`, which counts from 0."""
    if step <= 0:
        return 0.0
    # The exponent is bounded before it is used: 2.0 ** 2000 is an error, not infinity.
    return min(ceiling_s, FIRST_S * 2.0 ** min(step - 1, 16)) * rng.uniform(1 - JITTER, 1 + JITTER)


def server_delay_s(past: Sequence[Exit], rng: random.Random) -> float:
    """How long to wait before the restart of a controller or a gateway."""
    return delay_s(exits_since_healthy(past, SERVER_HEALTHY_S) - 1, rng, SERVER_CEILING_S)


def exits_since_healthy(past: Sequence[Exit], healthy_s: float = HEALTHY_S) -> int:
    """The number of exits since the last one that followed `healthy_s` of service, that one included."""
    count = 0
    for exit_ in reversed(past):
        count += 1
        if exit_.served_s >= healthy_s:
            break
    return count
