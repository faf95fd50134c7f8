"""How many workers the limit of open files (RLIMIT_NOFILE) holds, and who is told that it holds no other one.

Every process of a server has the same limit, and the controller holds most descriptors of a worker: so the budget is
the controller's. What is left beside the workers is for `ctl`, the journal, an upgrade and the orderly stop.
"""

from __future__ import annotations

from typing import Final

from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models.model_set import ModelSet

PER_WORKER: Final = 8
"""pidfd, control channel, status page and its mapping, crash pipe, log pipe, and with cgroup v2 two for memory events.
The keeper holds five of a worker; a gateway three, and two for each piece of memory that they share."""
PER_GATEWAY: Final = 6
RESERVED: Final = 96
"""The controller's own 20, the 64 connections that `ctl` may have, and files that are open for a moment."""
NO_DESCRIPTORS: Final = "too_many_files"
"""Code of a load that was refused for this."""


def workers_that_fit(limit: int, gateways: int) -> int:
    """`gateways`: processes, the standby included."""
    return max(limit - RESERVED - PER_GATEWAY * gateways, 0) // PER_WORKER


class DescriptorBudget:
    """Counts the workers of a model set against the limit."""

    def __init__(self, model_set: ModelSet, limit: int, gateways: int) -> None:
        self._model_set = model_set
        self._limit = limit
        self._most = workers_that_fit(limit, gateways)

    def refusal(self) -> str:
        """Why one of the workers that there are, the one that is about to start included, is too many; else empty."""
        if self._count_workers() <= self._most:
            return ""
        return (
            f"the limit of open files, {self._limit}, is enough for {self._most} workers: raise it by `ulimit -n` or "
            "LimitNOFILE= and restart mmsup, or serve fewer models"
        )

    def retry_refused(self) -> None:
        """Start as many refused instances as now fit."""
        free = self._most - self._count_workers()

        def may_start(_: Instance) -> bool:
            nonlocal free
            free -= 1
            return free >= 0

        if free > 0:
            self._model_set.retry(NO_DESCRIPTORS, may_start)

    def _count_workers(self) -> int:
        return sum(each.worker is not None for each in self._model_set.instances())
