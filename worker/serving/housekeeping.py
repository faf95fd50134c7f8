"""What a worker does for its own memory between runs: collects garbage, returns free memory, reports its device's."""

from __future__ import annotations

import gc
from typing import Final

from mmsup.ipc.memory import heap
from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.worker.execution.engine import Engine
from mmsup.worker.startup import malloc_tuning

COLLECT_EVERY_RUNS: Final = 256
"""Runs between two collections of young garbage; the collector is off, so that it never runs in the middle of one."""


class Housekeeping:
    def __init__(self, engine: Engine, page: StatusPageWriter) -> None:
        self._engine = engine
        self._page = page
        self.trim_schedule = malloc_tuning.TrimSchedule()
        self.due_at_run = COLLECT_EVERY_RUNS
        """After how many runs of this worker `after_run` has something to do."""

    def after_run(self, runs: int) -> None:
        """`runs`: of this worker so far, not less than `due_at_run`."""
        self.due_at_run = runs + COLLECT_EVERY_RUNS
        self._collect_garbage(generation=1)

    def when_idle(self, now_ns: int) -> None:
        """At a heartbeat, while nothing comes."""
        self._collect_garbage(generation=2)
        if self.trim_schedule.is_due(now_ns):
            heap.trim_heap()

    def _collect_garbage(self, generation: int) -> None:
        gc.collect(generation)
        self._page.set_device_bytes(self._engine.device_bytes())
