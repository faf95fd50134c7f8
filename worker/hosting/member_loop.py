"""The loop of one model among several in a process: turned by group_loop.py, and never asleep by itself."""

from __future__ import annotations

import time
from typing import Final

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.worker.execution.executor import Executor
from mmsup.worker.sequences.handler_choice import handler_class
from mmsup.worker.serving.loop import SEND_RETRY_MS, ServingLoop
from mmsup.worker.serving.shared_poller import SharedPoller
from mmsup.worker.startup.controller_channel import WorkerControlChannel

_SEND_RETRY_NS: Final = SEND_RETRY_MS * 1_000_000


class MemberLoop(ServingLoop):
    def __init__(
        self, control: WorkerControlChannel, executor: Executor, page: StatusPageWriter, poller: SharedPoller
    ) -> None:
        super().__init__(control, None, executor, page, poller=poller, handler_class=handler_class(executor.spec))
        self._batch_due_ns = 0

    def turn(self) -> bool:
        self._batch_due_ns = 0
        return super().turn()

    def due_ns(self, now_ns: int) -> int | None:
        """When it has to be turned again though nothing comes; None if a heartbeat is all that it owes."""
        if self._handler.queue.size or self._handler.known.waiting:
            return max(self._batch_due_ns, now_ns)
        return now_ns + _SEND_RETRY_NS if self._steps.due or self._outbox.replies else None

    def close(self) -> None:
        """Nothing comes any more: give up the links to the gateways."""
        for fd in list(self._links.by_fd):
            self._links.detach(fd)

    def _wait_for_requests(self, left_ns: int) -> None:
        """The next batch waits for more requests; the other models do not wait with it."""
        self._batch_due_ns = time.monotonic_ns() + max(left_ns, 0)
