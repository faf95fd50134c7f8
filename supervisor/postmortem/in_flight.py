"""What was in flight at the ends of lives, as the gateways tell it. Pure, and bounded.

A gateway tells of each life once. It may be dead itself: whoever asks says which gateways are there to be heard, and
does not wait for them without a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.gateway_control import Ended, InFlight
from mmsup.supervisor.instances.context import LifeKey

LIVES_KEPT: Final = 256
IDS_TOLD: Final = 16


@dataclass(frozen=True, slots=True)
class Loss:
    """What one life ended with."""

    in_flight: int
    begun: int
    requests: tuple[InFlight, ...]
    """The first of them."""
    is_complete: bool
    """Every gateway has told."""

    def ids(self) -> list[str]:
        """The clients' own ids of the first of them, as far as they gave any."""
        return [each.id for each in self.requests if each.id][:IDS_TOLD]


class Casualties:
    """By life; the oldest are forgotten."""

    def __init__(self) -> None:
        self._told: OrderedDict[LifeKey, dict[int, Ended]] = OrderedDict()

    def told(self, place: int, ended: Ended) -> None:
        """A gateway's word."""
        self._told.setdefault((ended.instance, ended.generation), {})[place] = ended
        while len(self._told) > LIVES_KEPT:
            self._told.popitem(last=False)

    def loss(self, key: LifeKey, places: Set[int]) -> Loss:
        """What is known of a life. `places`: gateways that had to do with it, and live."""
        told = self._told.get(key, {})
        requests = [each for ended in told.values() for each in ended.requests]
        return Loss(
            sum(each.in_flight for each in told.values()),
            sum(each.begun for each in told.values()),
            tuple(sorted(requests, key=lambda each: (not each.begun, -each.age_s))),
            told.keys() >= places,
        )
