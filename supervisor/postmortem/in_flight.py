"""What was in flight at the ends of lives, as the gateways tell it. Pure, and bounded.

A gateway tells of each life once. It may be dead itself: whoever asks says which gateways are there to be heard, and
does not wait for them without a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.gateway_control import InFlight, LinkClosed
from mmsup.supervisor.instances.context import WorkerId

MAX_WORKERS: Final = 256
MAX_IDS: Final = 16


@dataclass(frozen=True, slots=True)
class InFlightSummary:
    """What one life ended with."""

    in_flight: int
    begun: int
    requests: tuple[InFlight, ...]
    """The first of them."""
    is_complete: bool
    """Every gateway has told."""

    def ids(self) -> list[str]:
        """The clients' own ids of the first of them, as far as they gave any."""
        return [each.id for each in self.requests if each.id][:MAX_IDS]


class InFlightAtExit:
    """By life; the oldest are forgotten."""

    def __init__(self) -> None:
        self._reports: OrderedDict[WorkerId, dict[int, LinkClosed]] = OrderedDict()

    def add(self, place: int, ended: LinkClosed) -> None:
        """A gateway's word."""
        self._reports.setdefault((ended.instance, ended.generation), {})[place] = ended
        while len(self._reports) > MAX_WORKERS:
            self._reports.popitem(last=False)

    def summary(self, key: WorkerId, places: Set[int]) -> InFlightSummary:
        """What is known of a life. `places`: gateways that had to do with it, and live."""
        told = self._reports.get(key, {})
        requests = [each for ended in told.values() for each in ended.requests]
        return InFlightSummary(
            sum(each.in_flight for each in told.values()),
            sum(each.begun for each in told.values()),
            tuple(sorted(requests, key=lambda each: (not each.begun, -each.age_s))),
            told.keys() >= places,
        )
