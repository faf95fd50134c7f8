"""What the controller has asked for and is done when nothing is left to run: moving the model out of memory, moving it
back, stopping.

While the model moves the status page says MOVING: a move has the limit of a hang, also before the first run of all.
A move that raises ends the process, since nobody knows what it has left of the model. Before one the links are closed,
so that no gateway that is late has a request run by half a model: what it sent is sent to another worker.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Final

from mmsup.ipc.memory import heap
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.worker_control import ModelOffloaded, ModelRestored, OffloadModel, RestoreModel, StopWorker
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.engine import as_offloading_engine
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure, call_model_code
from mmsup.worker.startup.controller_channel import WorkerControlChannel
from mmsup.worker.startup.model_load import LOAD_CODES

NS: Final = 1e9
Step = OffloadModel | RestoreModel | StopWorker

log = logging.getLogger("mmsup.worker")


class QueuedSteps:
    def __init__(
        self,
        control: WorkerControlChannel,
        executor: Executor,
        page: StatusPageWriter,
        close_links: Callable[[], None],
    ) -> None:
        self._control = control
        self._spec = executor.spec
        self._engine = executor.engine
        self._page = page
        self._close_links = close_links
        self.is_offloaded = False
        self.due: list[Step] = []
        """No request is to come while there is any: they are done once all that have come are answered."""

    def run(self) -> bool:
        """Do what is due, in order; False after StopWorker."""
        due, self.due = self.due, []
        for step in due:
            match step:
                case OffloadModel():
                    self._offload()
                case RestoreModel():
                    self._restore()
                case StopWorker():
                    return False
        return True

    def _offload(self) -> None:
        engine, before_bytes, took_s = as_offloading_engine(self._engine), self._engine.device_bytes(), 0.0
        if engine is None:
            log.warning("ignored a request to offload a model that cannot be")
            return
        if not self.is_offloaded:
            self._close_links()
            took_s = self._move(engine.offload)
            gc.collect()
            heap.trim_heap()
            self.is_offloaded = True
        after_bytes = self._engine.device_bytes()
        self._page.set_device_bytes(after_bytes)
        self._control.send(ModelOffloaded(took_s, max(before_bytes - after_bytes, 0)))

    def _restore(self) -> None:
        engine, took_s = as_offloading_engine(self._engine), 0.0
        if engine is not None and self.is_offloaded:
            took_s = self._move(engine.restore)
            self.is_offloaded = False
        self._page.set_device_bytes(self._engine.device_bytes())
        self._control.send(ModelRestored(took_s))

    def _move(self, call: Callable[[], None]) -> float:
        """Runs one of the model's methods; how long it took. Exits if it raises."""
        began_ns = time.monotonic_ns()
        self._page.set_activity(Activity.MOVING, began_ns)
        failure = call_model_code(call, self._spec)
        if isinstance(failure, ModelFailure):
            if failure.device_fault is DeviceFault.LOST:
                raise DeviceLost(failure.text)
            self._control.report_load_failure(LOAD_CODES.get(failure.code, failure.code), failure.text, failure.detail)
        now_ns = time.monotonic_ns()
        self._page.idle(now_ns)
        return (now_ns - began_ns) / NS
