"""Whether a worker holds more memory of its GPU than its model's `gpu_memory`, whoever asked the driver for it. Pure.

The allocators of torch and onnxruntime keep to that budget by themselves (worker/engines/gpu_memory_limit.py); what a
model or a library asks of the driver passes them, and is found here from what NVML shows of the worker's processes. A
worker is ended for what two looks in a row show. Its own report ends nobody: it is its allocator's, which has refused
already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.gpu.memory_release import GpuUsage

LOOKS: Final = 2
SLACK_FRACTION: Final = 0.05
MIN_SLACK_BYTES: Final = 256 << 20
"""Contexts and library workspaces differ by driver and card from what the budget reserves for them."""


@dataclass(frozen=True, slots=True)
class GpuBudget:
    held: GpuUsage
    budget_bytes: int


def is_exceeded(budget: GpuBudget) -> bool:
    """Whether one look shows more than the budget and its slack."""
    slack_bytes = max(MIN_SLACK_BYTES, budget.budget_bytes * SLACK_FRACTION)
    return budget.held.source == "nvml" and budget.held.held_bytes > budget.budget_bytes + slack_bytes


class ExcessCounter:
    """How many looks in a row have shown an excess, by worker."""

    def __init__(self) -> None:
        self._looks: dict[tuple[int, int], int] = {}

    def look(self, budgets: dict[tuple[int, int], GpuBudget]) -> list[tuple[int, int]]:
        """The workers to end, given all that there are at one look of NVML."""
        self._looks = {worker: self._looks.get(worker, 0) + 1 for worker, each in budgets.items() if is_exceeded(each)}
        return [worker for worker, looks in self._looks.items() if looks == LOOKS]
