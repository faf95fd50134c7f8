"""How much memory all workers together may use: of the host, and of each GPU. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from mmsup.supervisor.config.settings import Settings

PROCESS_BYTES: Final = 96 << 20
"""Kept for keeper, controller and each gateway: what they hold, and what requests of ordinary size add."""
LEAST_SHARE: Final = 4
"""Of the memory of a small machine a default budget leaves at least one part in so many to workers: arenas are a limit
that is seldom reached."""


@dataclass(frozen=True, slots=True)
class MemoryBudgets:
    host_bytes: int
    is_configured: bool = False
    """A default budget warns; it refuses nothing as long as there is memory."""
    by_device: Mapping[str, int] = field(default_factory=dict[str, int])
    """By `cuda:N` or UUID; empty name: each device that is not named."""

    def of_device(self, *names: str) -> int | None:
        """The configured budget of a device that has these names; None if there is none."""
        return next((self.by_device[name] for name in (*names, "") if name in self.by_device), None)


def memory_budgets(settings: Settings, total_bytes: int) -> MemoryBudgets:
    """`total_bytes`: memory of the machine, or of the container that the server runs in."""
    by_device = dict(map(parse_device_budget, settings.gpu_memory_budgets))
    if settings.memory_budget_bytes:
        return MemoryBudgets(settings.memory_budget_bytes, is_configured=True, by_device=by_device)
    gateways = settings.gateways + settings.spare_gateway
    own_bytes = PROCESS_BYTES * (2 + gateways) + settings.arena_bytes * settings.gateways
    return MemoryBudgets(max(total_bytes - own_bytes, total_bytes // LEAST_SHARE), by_device=by_device)


def parse_device_budget(text: str) -> tuple[str, int]:
    """`cuda:1:8589934592` as `server_options` normalises it: device, or nothing for all, and bytes."""
    device, _, size_bytes = text.rpartition(":")
    return device, int(size_bytes)
