"""When a worker that exited is started again, or its model given up: a pure function of the past exits and the time.

A model is given up after more than 5 exits in 60 s, of lives that had not served well, or 5 failed loads in a row.
It is then probed: one start every 300 s, or at once when somebody loads it, which begins a new history. A probe that
dies before it has served for 60 s gives the model up again at once. A life has served well when it was ready for 10 s:
such a model serves between its faults, and the growing delays are enough. Otherwise the delay is that of
processes/backoff.py.

A load whose code is in NOT_MENDED_BY_TIME (the configuration contradicts the file) gives the model up without probes:
the next try follows a change of its files (models/repository_watcher.py) or a load by hand, which both make a new
revision.

A history belongs to one revision of one model version and counts against no other. With several instances the limits
and the delays scale with their number: all of them dying at once is one incident, not many.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from mmsup.supervisor.processes.backoff import Exit, delay_s, exits_since_healthy

PERIOD_S: Final = 60.0
EXITS_IN_PERIOD: Final = 5
SERVED_WELL_S: Final = 10.0
"""More than a hang at the default limit takes, so that a life whose first request hangs has not served well."""
LOADS_IN_A_ROW: Final = 5
PROBE_AFTER_S: Final = 300.0
NOT_MENDED_BY_TIME: Final = frozenset({"config_mismatch"})


@dataclass(frozen=True, slots=True)
class Retry:
    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Try again only as a probe, or not at all. `code` is one of ipc/errors.py."""

    code: str
    reason: str
    is_probed: bool = True


NextTry = Retry | GiveUp


def next_try(
    past: Sequence[Exit], now_s: float, rng: random.Random, instances: int = 1, load_code: str = ""
) -> NextTry:
    """What follows the last exit of `past`, which is ordered oldest first and must not be empty. `load_code`: of the
    load that it failed, if it did."""
    assert past, "nothing has exited"
    if load_code in NOT_MENDED_BY_TIME:
        return GiveUp(load_code, "no try before its files have changed or it is loaded by hand", is_probed=False)
    loads = loads_failed_in_a_row(past)
    if loads >= LOADS_IN_A_ROW * instances:
        return GiveUp("model_failed", f"{loads} loads failed in a row")
    exits = sum(each.at_s > now_s - PERIOD_S and each.served_s < SERVED_WELL_S for each in past)
    if exits > EXITS_IN_PERIOD * instances:
        return GiveUp("crash_loop", f"{exits} deaths in {PERIOD_S:g} s")
    last = past[-1]
    if last.was_probe and last.served_s < PERIOD_S:
        return GiveUp("crash_loop" if last.served_s else "model_failed", "the probe after giving up died too")
    return Retry(delay_s((exits_since_healthy(past) - 1) // instances, rng))


def beside_others(decision: NextTry, others: Sequence[str], *, ended_in_load: bool) -> NextTry:
    """The same for an instance that ended a process which it shares with `others`: they pay for each of its tries.

    A load that ended the process is not tried again, and what was given up is not probed.
    """
    if not others:
        return decision
    names = ", ".join(others)
    end = f"no try before its files have changed or it is loaded by hand: each would end {names} too"
    if ended_in_load:
        return GiveUp("model_failed", f"its load ended the process that it shares; {end}", is_probed=False)
    if isinstance(decision, GiveUp):
        return replace(decision, reason=f"{decision.reason}; {end}", is_probed=False)
    return decision


def is_tried_once_more(past: Sequence[Exit], instances: int, *, is_awaited: bool) -> bool:
    """Whether a load for which requests wait, and whose process has just ended, is tried again before they are told.
    `past`: the exits before."""
    return is_awaited and loads_failed_in_a_row(past) < instances


def loads_failed_in_a_row(past: Sequence[Exit]) -> int:
    """How many of the last exits, in a row, were of workers that never served."""
    return len(list(takewhile(lambda each: each.served_s <= 0, reversed(past))))
