"""The requests that were in flight at the exit of workers, as the gateways report them. Pure, and bounded.

Each gateway reports once for each worker. A gateway may be dead itself, so the reader passes those that can report.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.gateway_control import InFlight, LinkClosed
from mmsup.ipc.paths import WorkerId

MAX_WORKERS: Final = 256
MAX_IDS: Final = 16


@dataclass(frozen=True, slots=True)
class InFlightSummary:
    in_flight: int
    begun: int
    """Of them, those that the worker had begun."""
    requests: tuple[InFlight, ...]
    """Details of some, those that had begun first."""
    is_complete: bool
    """Every gateway has reported."""

    def ids(self) -> list[str]:
        """Request ids given by the clients, at most MAX_IDS."""
        return [each.id for each in self.requests if each.id][:MAX_IDS]


class InFlightAtExit:
    """The reports by worker, of the last MAX_WORKERS."""

    def __init__(self) -> None:
        self._reports: OrderedDict[WorkerId, dict[int, LinkClosed]] = OrderedDict()

    def add(self, gateway: int, report: LinkClosed) -> None:
        self._reports.setdefault((report.instance, report.generation), {})[gateway] = report
        while len(self._reports) > MAX_WORKERS:
            self._reports.popitem(last=False)

    def forget(self, worker: WorkerId) -> None:
        """It has not exited: its links were closed while it served nobody, and there are new ones."""
        self._reports.pop(worker, None)

    def summary(self, worker: WorkerId, gateways: Set[int]) -> InFlightSummary:
        """What is known of a worker. `gateways`: those whose reports make it complete."""
        reports = self._reports.get(worker, {})
        requests = [each for report in reports.values() for each in report.requests]
        return InFlightSummary(
            sum(each.in_flight for each in reports.values()),
            sum(each.begun for each in reports.values()),
            tuple(sorted(requests, key=lambda each: (not each.begun, -each.age_s))),
            reports.keys() >= gateways,
        )
