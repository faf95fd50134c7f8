"""When there may be another zygote after those that ended. Pure.

The pauses are those of backoff.py. One more bound is for zygotes that come up and then fork nothing, whatever the
reason (a library that starts a thread at its import, a kernel that refuses the call): each costs imports and memory,
and each worker that waited for it a second. After MOST_REFUSALS of them in a row the next one is tried GIVEN_UP_S
later, and workers are started by exec until then.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.processes.backoff import MAX_EXITS, Exit, delay_s, exits_since_healthy

HEALTHY_S: Final = 60.0
"""After so long its next start has no pause again."""
MOST_REFUSALS: Final = 3
GIVEN_UP_S: Final = 600.0


@dataclass(slots=True)
class ZygoteHistory:
    """Of one key. Times are monotonic seconds."""

    exits: list[Exit] = field(default_factory=list["Exit"])
    retry_at_s: float = 0.0
    reason: str = ""
    """Why there is none."""
    refused: set[int] = field(default_factory=set[int])
    """Numbers of the zygotes that have refused to fork, since one has forked."""
    last: int = 0
    """The number of the one that ended last."""

    def record_exit(self, number: int, text: str, served_s: float, now_s: float, *, is_outdated: bool) -> float:
        """The pause before the next one, in seconds."""
        self.last, self.reason, self.retry_at_s = number, text, now_s
        if not is_outdated:
            self.exits = [*self.exits, Exit(now_s, served_s)][-MAX_EXITS:]
            self.retry_at_s += delay_s(exits_since_healthy(self.exits, HEALTHY_S), random.Random())
        self._bound(now_s)
        return self.retry_at_s - now_s

    def record_refusal(self, number: int, now_s: float) -> None:
        """This zygote forked no worker when it was asked; it ends now, or has ended."""
        self.refused.add(number)
        if number == self.last:
            self._bound(now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether it changes nothing to forget it, where nobody wants another one."""
        return now_s >= self.retry_at_s + (GIVEN_UP_S if self.refused else 0.0)

    def _bound(self, now_s: float) -> None:
        if self.last in self.refused and len(self.refused) >= MOST_REFUSALS:
            self.retry_at_s = now_s + GIVEN_UP_S
            text = f"{len(self.refused)} in a row have forked none, so the next is tried in {GIVEN_UP_S / 60:g} minutes"
            self.reason = f"{self.reason.partition(';')[0]}; {text}"
