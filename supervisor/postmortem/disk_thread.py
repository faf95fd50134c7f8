"""One thread for work that may have to wait for a slow disk, with a bounded queue."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

MAX_JOBS: Final = 64
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


class DiskThread:
    def __init__(self) -> None:
        self._jobs = 0
        self._executor = ThreadPoolExecutor(1, "disk")
        self._loop = asyncio.get_running_loop()

    def submit(
        self, work: Callable[_Given, _Result], *args: _Given.args, **kwargs: _Given.kwargs
    ) -> Future[_Result] | None:
        """A job for the thread; None if MAX_JOBS are waiting."""
        if self._jobs >= MAX_JOBS:
            return None
        self._jobs += 1
        job = self._executor.submit(work, *args, **kwargs)
        job.add_done_callback(lambda _: self.call_loop(self._on_job_done))
        return job

    def call_loop(self, callback: Callable[[], None]) -> None:
        """Called from the thread: run the callback on the event loop, unless that is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def close(self) -> None:
        """No more jobs. Does not wait: the thread ends with its last job."""
        self._executor.shutdown(wait=False)

    def _on_job_done(self) -> None:
        self._jobs -= 1
