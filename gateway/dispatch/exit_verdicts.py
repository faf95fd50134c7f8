"""Verdicts: why a worker exited, as the controller determined it."""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.errors import MmsupError, WorkerError, make_error

VERDICT_WAIT_S: Final = 0.05
"""How long the answer to a worker's death waits for the controller's verdict: half of the time promised to clients."""
VERDICTS_LIMIT: Final = 256
DEFAULT_VERDICT: Final = WorkerError("worker_crashed", "the worker died with this request in flight; cause unknown")


class Verdicts:
    """The verdicts on the last workers, by worker id."""

    def __init__(self) -> None:
        self._futures: BoundedCache[tuple[int, int], asyncio.Future[MmsupError]] = BoundedCache(VERDICTS_LIMIT)

    def expect(self, worker_id: tuple[int, int]) -> asyncio.Future[MmsupError]:
        """The verdict on this worker, now or later."""
        future = self._futures.get(worker_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._futures.add(worker_id, future)
        return future

    def set(self, worker_id: tuple[int, int], error: MmsupError) -> None:
        """Record why a worker exited, or is about to be killed. The first verdict holds."""
        future = self.expect(worker_id)
        if not future.done():
            future.set_result(error)

    async def wait(self, worker_id: tuple[int, int], model: str) -> MmsupError:
        """Why that worker exited: `cause unknown` if no verdict comes within VERDICT_WAIT_S."""
        try:
            async with asyncio.timeout(VERDICT_WAIT_S):
                error = await asyncio.shield(self.expect(worker_id))
        except TimeoutError:
            error = DEFAULT_VERDICT
        return make_error(error.code, error.text, model=model, retry_after_s=1, retryable=error.retryable)
