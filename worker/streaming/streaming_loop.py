"""The loop of a worker whose requests are open side by side: every turn starts some, and takes a step of each stream.

Nothing waits for the end of a stream: what has come is received between two steps, and what was made is sent.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.calls import CallReply, GrantCall
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.loop import SEND_RETRY_MS, ServingLoop
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.request_handler import RequestHandler
from mmsup.worker.serving.shared_poller import SharedPoller
from mmsup.worker.startup.controller_channel import WorkerControlChannel
from mmsup.worker.streaming.part_writer import PartWriter
from mmsup.worker.streaming.stream_runner import StreamRunner

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # imports zmq, with its threads

STARTS_LIMIT: Final = 8
"""Streams that are opened in one turn, while that is quick; the open ones take their steps after that."""
STARTS_NS: Final = 2_000_000


class StreamingHandler(RequestHandler):
    def __init__(
        self, executor: Executor, page: StatusPageWriter, outbox: Outbox, *, use_known_requests: bool = False
    ) -> None:
        del use_known_requests  # each is opened by itself
        super().__init__(executor, page, outbox, use_known_requests=False)
        self.streams = StreamRunner(executor, page, PartWriter(executor, self.replies, outbox), self.flush)

    def _on_messages(self, link: GatewayLink, messages: Iterable[Any], now_ns: int) -> list[str]:  # of any kind
        others = [each for each in messages if not self.streams.on_message(link, each)]
        if any(isinstance(each, GrantCall | CallReply) for each in others):
            self.streams.awaited.events.wake()
        return super()._on_messages(link, others, now_ns)

    def drop_link(self, link: GatewayLink) -> None:
        self.streams.drop_link(link)
        super().drop_link(link)

    def start_waiting(self, now_ns: int) -> int:
        """Open the next of the queued requests, as far as there is room; how many."""
        queue, started, began_ns = self.queue, 0, now_ns
        if queue.has_timeouts:
            for request in queue.pop_timed_out(now_ns):
                self.replies.reply_expired(request, now_ns)
        for request in list(queue.in_order(now_ns)) if queue.size and not self.streams.table.is_full else ():
            if request.message.deadline_ns <= now_ns:
                queue.remove(request)
                self.replies.reply_expired(request, now_ns)
                continue
            if not self.streams.table.may_start(request):
                if self.streams.table.is_full:
                    break
                continue
            queue.remove(request)
            queue.on_run_start(request)
            if request.signature.runs_alone:
                self.flush()
            inputs = self._inputs(request)
            if isinstance(inputs, ModelFailure):
                self.replies.reply_failure(request, inputs)
            else:
                self.streams.start(request, inputs, now_ns)
            started += 1
            now_ns = time.monotonic_ns()
            if started >= STARTS_LIMIT or now_ns - began_ns > STARTS_NS:
                break
        return started

    def has_startable(self) -> bool:
        return bool(self.queue.size) and any(
            map(self.streams.table.may_start, self.queue.in_order(time.monotonic_ns()))
        )


class StreamingLoop(ServingLoop):
    def __init__(
        self,
        control: WorkerControlChannel,
        zeromq: ZmqWorkerChannel | None,
        executor: Executor,
        page: StatusPageWriter,
        *,
        handler_class: type[RequestHandler] = RequestHandler,
        poller: select.poll | SharedPoller | None = None,
    ) -> None:
        """`handler_class`: of a model that answers once, which this one is not."""
        assert handler_class is RequestHandler, "a model whose requests are open side by side has no sequences"
        super().__init__(control, zeromq, executor, page, handler_class=StreamingHandler, poller=poller)
        assert isinstance(self._handler, StreamingHandler), "it made another handler"
        self._streaming = self._handler
        self._poller.register(self._streaming.streams.awaited.events.fileno(), select.POLLIN)

    def turn(self) -> bool:
        handler, streams = self._streaming, self._streaming.streams
        if self._links.calls is not None:
            for link, records in self._links.calls.take_deferred():
                self._on_other_records(link, records, time.monotonic_ns())
        received = self._receive_all(self._wait_ms())
        began_ns = time.monotonic_ns()
        started = handler.start_waiting(began_ns) if handler.queue.size else 0
        if started and streams.has_steps():
            handler.flush()  # no first part waits for other steps, which may be slow
        stepped = streams.turn()
        stuck_ns = streams.end_silent(began_ns) if streams.table.open else 0
        if started or stepped:
            now_ns = time.monotonic_ns()
            handler.policy.on_run(1, now_ns - began_ns)
            self._end_runs(now_ns, 0)
        elif received:
            self._on_idle()
        elif self._is_done():
            return self._steps.run()
        else:
            self._housekeeping.when_idle(began_ns)
            self._on_idle()
        if stuck_ns:
            self._page.set_activity(Activity.BUSY, stuck_ns)  # as if it were a run
        return True

    def _wait_ms(self) -> int:
        streams = self._streaming.streams
        if streams.has_steps() or self._streaming.has_startable() or self._is_done():
            return 0
        limit_ms = min(SEND_RETRY_MS, self._heartbeat_ms) if self._outbox.replies else self._heartbeat_ms
        return math.ceil(streams.awaited.events.sleep_s(limit_ms / 1000) * 1000)

    def due_ns(self, now_ns: int) -> int | None:
        """When it has to be turned again though nothing comes."""
        return now_ns + self._wait_ms() * 1_000_000

    def _is_done(self) -> bool:
        return super()._is_done() and not self._streaming.streams.table.open and not self._handler.queue.size

    def _receive_other(self, fd: int) -> None:
        if fd == self._streaming.streams.awaited.events.fileno():
            self._streaming.streams.awaited.turn()
        else:
            super()._receive_other(fd)
