"""The thread in which `execute` of a decoupled model runs, one call after the other, so that what it sends goes out at
once: the worker's own thread writes it meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Call = Callable[[], None]


class ExecuteThread:
    """Started by the first call. A call handles whatever it raises."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Call) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="execute", daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def stop(self) -> None:
        """Wait for the call that runs; those behind it are dropped by their callers."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            thread.join()
