"""Which process of a server uses how much of the processors, over a span."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import tree
from table import figure, table

_TICKS = os.sysconf("SC_CLK_TCK")
ROLES = {
    "supervisor.controller": "controller",
    "gateway": "gateway",
    "worker.zygote": "zygotes",
    "worker": "workers",
}
"""By the module that a process runs; all others of the server are the keeper."""


@dataclass(frozen=True)
class CpuReading:
    """CPU seconds since the start, by role."""

    at_s: float
    by_role: Mapping[str, float]


def read_cpu(keeper: int) -> CpuReading:
    """Of this process and the server with this keeper. Workers that have ended are counted by it when it reaps them."""
    used: dict[str, float] = defaultdict(float)
    for pid, fields in tree.descendants().items():
        own, waited = (sum(map(int, pair)) / _TICKS for pair in (fields[11:13], fields[13:15]))
        role = "keeper" if pid == keeper else ROLES.get(tree.name(pid), "others")
        used[role] += own
        used["workers"] += waited
    own = os.times()
    used["client"] = own.user + own.system
    return CpuReading(time.monotonic(), dict(used))


def cpu_table(before: CpuReading, after: CpuReading, loads: int) -> str:
    """Milliseconds for each load, and the share of all processors."""
    cores, span_s = os.cpu_count() or 1, after.at_s - before.at_s
    found = {role: used_s - before.by_role.get(role, 0.0) for role, used_s in after.by_role.items()}
    found["all"] = sum(found.values())
    lines = [
        [role, figure(used_s / max(loads, 1) * 1e3), f"{used_s / span_s / cores:.0%}"] for role, used_s in found.items()
    ]
    return table(["process", "CPU for each load, ms", "of the processors"], lines)
