"""The worker's one loop: hear, run, answer.

One thread, one poll over a few kinds of descriptors: a socket pair for each gateway (requests, extents, its end), the
control channel (Attach, Stop), the lifeline, and ZeroMQ's where that carries the requests. Each turn hears what has
come, runs from the head of the queue, and answers each gateway in one frame. Nothing here waits for anyone but in
`poll`.

All that has come is heard before anything runs: what still lay in a socket would be overtaken by lower classes, and
would miss the run that it could share. ZeroMQ's descriptor is edge-triggered, and
sending consumes edges too: it is read until dry in every turn, and before every sleep.

The status page says what this loop does, from this loop: BUSY since the start of the run, IDLE with a beat.
"""

from __future__ import annotations

import gc
import logging
import select
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.worker_control import TO_WORKER, AttachGateway, StopWorker
from mmsup.ipc.transport.codec import decode, unpack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS
from mmsup.worker.execution.executor import Executor
from mmsup.worker.serving.gateway_links import GatewayLink, GatewayLinks
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.request_handler import RequestHandler
from mmsup.worker.startup import malloc_tuning
from mmsup.worker.startup.controller_channel import WorkerControlChannel, exit_parent_lost

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # zmq is for those who use it

log = logging.getLogger("mmsup.worker")

HEARTBEAT_S: Final = 0.5
"""Longest sleep of an idle loop; a quarter of the model's hang limit where that is shorter."""
SEND_RETRY_S: Final = 0.01
"""Sleep while a gateway does not take its replies."""
SELECT_LIMIT: Final = 1024
"""Descriptors from here on are too high for `select`."""
PACKETS_LIMIT: Final = 256
"""Of each pair in one turn: about what the kernel keeps for us, so that the next run waits for no gateway's zeal."""
COLLECT_EVERY_RUNS: Final = 256
"""Batches between two collections of young garbage; the collector does not run by itself, in the middle of one."""


class ServingLoop:
    """Everything between Ready and the end. `run` returns after Stop, when all that was asked is answered."""

    def __init__(
        self, control: WorkerControlChannel, end: ZmqWorkerChannel | None, execution: Executor, page: StatusPageWriter
    ) -> None:
        self._control = control
        self._zeromq = end
        self._executor = execution
        self._page = page
        self._poller = select.poll()
        self._links = GatewayLinks(self._poller, end, execution.pinned_memory_user)
        self._trim_schedule = malloc_tuning.TrimSchedule()
        self._outbox = Outbox()
        self._handler = RequestHandler(execution, page, self._outbox)
        self._heartbeat_s = min(HEARTBEAT_S, execution.spec.hang_limit_s / 4)
        self._unexpected = 0
        """Frames and records that nobody may have sent: of unknown gateways, of no known form."""
        self._collected_at = 0
        """Runs until the last collection."""
        self._stopping = False
        self._poller.register(control.channel.fileno(), select.POLLIN)
        self._poller.register(control.lifeline, 0)  # only its end is of interest
        if end is not None:
            self._poller.register(end.fileno(), select.POLLIN)

    def run(self) -> None:
        """Serve until Stop."""
        self._page.set_activity(Activity.IDLE, time.monotonic_ns())
        desk = self._handler
        waiting = desk.queue
        while True:
            heard = self._receive_all(0 if waiting.size else self._poll_timeout_s())
            if waiting.size:
                self._run_queued()
            elif heard:
                self._on_idle()
            elif self._is_done():
                return
            else:
                self._collect_garbage(generation=2)
                self._on_idle()
                if self._trim_schedule.is_due(time.monotonic_ns()):
                    malloc_tuning.trim_heap()

    def _is_done(self) -> bool:
        return self._stopping and not self._handler.pending and not self._outbox.replies

    def _poll_timeout_s(self) -> float:
        if not self._stopping and not self._outbox.replies:
            return self._heartbeat_s
        return 0 if self._is_done() else min(SEND_RETRY_S, self._heartbeat_s)

    def _on_idle(self) -> None:
        now = time.monotonic_ns()
        self._page.heartbeat(now)
        self._handler.expire_pending(now)
        self._handler.flush()

    # Hearing.

    def _receive_all(self, timeout_s: float) -> bool:
        """Take what has come, waiting so long for it; whether there was anything."""
        heard = self._zeromq is not None and self._receive_zeromq()
        events = self._poller.poll(0 if heard else timeout_s * 1000)
        now = time.monotonic_ns()
        for _ in range(PACKETS_LIMIT):
            if not events:
                break
            heard = True
            for fd, _events in events:
                link = self._links.by_fd.get(fd)
                if link is not None:
                    self._receive_packet(fd, link, now)
                else:
                    self._receive_other(fd)
            events = self._poller.poll(0)  # cheaper than a read that finds nothing
        return heard

    def _receive_other(self, fd: int) -> None:
        """Something came that is no pair's."""
        if fd == self._control.lifeline:
            exit_parent_lost()
        elif fd == self._control.channel.fileno():
            self._receive_control()
        else:
            self._receive_zeromq()

    def _receive_packet(self, fd: int, link: GatewayLink, now_ns: int) -> None:
        """Take one packet of a pair, or note its end."""
        try:
            records = link.receive()
        except WireError as error:
            self._on_unexpected(f"a frame that is none: {error}")
        except ChannelClosed:
            self._links.detach(fd)
            self._handler.drop_link(link)
        else:
            if records:
                self._dispatch(link, records, now_ns)

    def _dispatch(self, link: GatewayLink, records: Iterable[Any], now_ns: int) -> None:
        take_in = self._handler.on_message
        for record in records:
            if not take_in(link, record, now_ns):
                self._on_unexpected(f"a {type(record).__name__} that is not for a worker, or doubled")

    def _receive_zeromq(self) -> bool:
        """Take every frame that has come that way, until dry; whether there was any."""
        assert self._zeromq is not None, "this worker has no such socket"
        heard = False
        while (received := self._zeromq.receive()) is not None:
            heard = True
            identity, frame = received
            if self._links.get(identity) is None:
                self._receive_control()  # the brain attaches a gateway before that gateway speaks, but on another channel
            link = self._links.get(identity)
            if link is None:
                self._on_unexpected("a frame of a gateway that is not attached")
                continue
            try:
                self._dispatch(link, unpack_frame(frame), time.monotonic_ns())
            except WireError as error:
                self._on_unexpected(f"a frame that is none: {error}")
        return heard

    def _receive_control(self) -> None:
        """Do what the brain says."""
        try:
            while (received := self._control.channel.receive()) is not None:
                data, descriptors = received
                match decode(data, TO_WORKER):
                    case AttachGateway() as attach if len(descriptors) == 1:
                        self._links.attach(attach, descriptors.pop())
                    case StopWorker():
                        self._stopping = True
                    case other:
                        log.warning("a %s with %d descriptors is not for now", type(other).__name__, len(descriptors))
                close_fds(descriptors)
        except ChannelClosed:
            exit_parent_lost()

    def _on_unexpected(self, what: str) -> None:
        self._unexpected += 1
        if self._unexpected & (self._unexpected - 1) == 0:  # at 1, 2, 4, …: a flood fills no log
            log.warning("ignored %s (%d such so far)", what, self._unexpected)

    # Serving.

    def _run_queued(self) -> None:
        """Run what is next as long as the runs are quick, then answer; sleep if what is next waits for company."""
        desk, pace = self._handler, self._handler.policy
        began = now = time.monotonic_ns()
        until = 0
        ran = 0 if pace.can_batch else desk.run_singly(now)
        if ran:
            now = time.monotonic_ns()
        while desk.queue.size and not until and ran < MAX_BATCH_REQUESTS and pace.has_time_for_run(now - began):
            taken = desk.run_next_batch(now)
            ran += len(taken.requests)
            until = taken.wait_until_ns
            now = time.monotonic_ns()
        if pace.runs >= self._collected_at + COLLECT_EVERY_RUNS:
            self._collected_at = pace.runs
            self._collect_garbage(generation=1)
        if ran and pace.can_delay:
            self._receive_all(0)  # before the answers go out: who is here now is not one of those answered
            pace.on_concurrency(ran + desk.queue.size)
        self._page.set_activity(Activity.IDLE, now)
        self._trim_schedule.on_run(now)
        if desk.pending.results:
            desk.expire_pending(now)
        desk.flush()
        if until and not self._receive_all(0):
            self._wait_for_requests(until - now)

    def _wait_for_requests(self, left_ns: int) -> None:
        """Sleep until a gateway speaks, or the time is up; finer than the milliseconds of `poll`."""
        sources = [
            *self._links,
            self._control.channel.fileno(),
            *([] if self._zeromq is None else [self._zeromq.fileno()]),
        ]
        left_s = min(max(left_ns, 0) / 1e9, self._heartbeat_s)
        if max(sources) < SELECT_LIMIT:
            select.select(sources, [], [], left_s)
        else:
            self._poller.poll(left_s * 1000)

    def _collect_garbage(self, generation: int) -> None:
        gc.collect(generation)
        self._page.set_device_bytes(self._executor.engine.device_bytes())
