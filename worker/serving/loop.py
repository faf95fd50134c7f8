"""The worker's loop: receive requests, run the model, send replies.

One thread, one poll over a few descriptors: a socket pair for each gateway (requests, shared memory, its end), the
control channel (AttachGateway, and what queued_steps.py does), the lifeline, and ZeroMQ's where that carries the
requests. Each iteration receives what has come, runs from the head of the queue, and answers each gateway in one frame.
Nothing here blocks except `poll` and `select`.

All that has come is received before anything runs: a request still in a socket would be overtaken by lower priorities,
and would miss the batch that it could share. ZeroMQ's descriptor is edge-triggered, and sending consumes edges too: it
is read until empty in every iteration, and before every sleep.

The status page reports what this loop does, from this loop: BUSY since the start of the run, IDLE with a heartbeat.
"""

from __future__ import annotations

import logging
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.worker_control import TO_WORKER, AttachGateway, OffloadModel, RestoreModel, StopWorker
from mmsup.ipc.transport.codec import decode, unpack_records
from mmsup.ipc.transport.control_channel import ChannelClosed, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS
from mmsup.worker.calls.model_calls import calls_of
from mmsup.worker.execution.executor import Executor
from mmsup.worker.serving.call_links import connect_calls
from mmsup.worker.serving.gateway_links import GatewayLink, GatewayLinks
from mmsup.worker.serving.housekeeping import Housekeeping
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.queued_steps import QueuedSteps
from mmsup.worker.serving.request_handler import RequestHandler
from mmsup.worker.serving.shared_poller import SharedPoller
from mmsup.worker.startup.controller_channel import WorkerControlChannel, exit_parent_lost

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # imports zmq, with its threads

log = logging.getLogger("mmsup.worker")

HEARTBEAT_MS: Final = 500
"""Longest sleep of an idle loop; a quarter of the model's hang limit where that is shorter."""
SEND_RETRY_MS: Final = 10
"""Sleep while a gateway does not take its replies."""
SELECT_LIMIT: Final = 1024
"""`select` takes no descriptor from here on."""
PACKETS_LIMIT: Final = 256
"""Of each pair in one iteration: about what the kernel buffers, so that no gateway can put off the next run by sending
on and on."""


class ServingLoop:
    """From WorkerReady to the end. `run` returns after StopWorker, when all requests are answered."""

    def __init__(
        self,
        control: WorkerControlChannel,
        zeromq: ZmqWorkerChannel | None,
        executor: Executor,
        page: StatusPageWriter,
        *,
        use_known_requests: bool = True,
        handler_class: type[RequestHandler] = RequestHandler,
        poller: select.poll | SharedPoller | None = None,
    ) -> None:
        """`poller`: that of a member of a co-location group, whose loop never sleeps by itself."""
        self._control = control
        self._zeromq = zeromq
        self._page = page
        self._poller = poller if poller is not None else select.poll()
        self._links = GatewayLinks(self._poller, zeromq, executor.pinned_memory)
        self._housekeeping = Housekeeping(executor.engine, page)
        self._outbox = Outbox()
        self._handler = handler_class(executor, page, self._outbox, use_known_requests=use_known_requests)
        self._unexpected = 0
        """Frames and messages that were ignored: of unknown gateways, malformed, or of a kind not sent to workers."""
        calls = calls_of(executor.engine)
        lifeline, model = control.lifeline, executor.spec.name
        connect_calls(calls, model, self._handler, self._outbox, page, self._links, lifeline)
        close_links = partial(self._links.detach_all, self._handler.drop_link)
        self._steps = QueuedSteps(control, executor, page, close_links)
        self._heartbeat_ms = min(HEARTBEAT_MS, max(int(executor.spec.hang_limit_s * 250), 1))
        self._poller.register(control.channel.fileno(), select.POLLIN)
        self._poller.register(control.lifeline, 0)  # only its hang-up matters
        if zeromq is not None:
            self._poller.register(zeromq.fileno(), select.POLLIN)

    def run(self) -> None:
        self._page.idle(time.monotonic_ns())
        while self.turn():
            pass

    def turn(self) -> bool:
        """One iteration; False at the end."""
        queue, known, policy = self._handler.queue, self._handler.known, self._handler.policy
        if queue.size or known.waiting:
            timeout_ms = 0
        elif self._steps.due or self._outbox.replies:
            timeout_ms = 0 if self._is_done() else min(SEND_RETRY_MS, self._heartbeat_ms)
        else:
            timeout_ms = self._heartbeat_ms
        received = self._receive_all(timeout_ms)
        if known.waiting and (not policy.can_batch or policy.runs_singly(len(known.waiting))):
            self._run_known()
        elif queue.size or known.waiting:
            self._run_queued()
        elif received:
            self._on_idle()
        elif self._is_done():
            return self._steps.run()
        else:
            self._housekeeping.when_idle(time.monotonic_ns())
            self._on_idle()
        return True

    def _is_done(self) -> bool:
        if not self._steps.due or self._handler.replies.pending.results or self._outbox.replies:
            return False
        return not self._links.by_fd or self._handler.is_drained(time.monotonic_ns())

    def _on_idle(self) -> None:
        now_ns = time.monotonic_ns()
        self._page.heartbeat(now_ns)
        self._handler.replies.expire_pending(now_ns)
        self._handler.flush()

    # Receiving.

    def _receive_all(self, timeout_ms: int) -> bool:
        """Receive all that has come, after waiting at most so long; whether there was anything."""
        queue, known = self._handler.queue, self._handler.known
        received = self._zeromq is not None and self._receive_zeromq()
        events = self._poller.poll(0 if received else timeout_ms)
        now_ns = time.monotonic_ns()
        for _ in range(PACKETS_LIMIT):
            if not events:
                break
            received = True
            for fd, _events in events:
                link = self._links.by_fd.get(fd)
                if link is None:
                    self._receive_other(fd)
                    continue
                try:
                    records = link.receive()
                    if records and (queue.size or not known.take(link, records, now_ns)):
                        self._on_other_records(link, records, now_ns)
                except WireError as error:
                    self._on_unexpected(f"a malformed frame: {error}")
                except ChannelClosed:
                    self._links.detach(fd)
                    self._handler.drop_link(link)
            events = self._poller.poll(0)  # cheaper than a read that finds nothing
        return received

    def _on_other_records(self, link: GatewayLink, records: list[Any], now_ns: int) -> None:  # of `unpack_records`
        """Handle a frame that is not one of known requests, or comes behind others."""
        for rejected in self._handler.on_records(link, records, now_ns):
            self._on_unexpected(f"a {rejected} that is not sent to workers, or a duplicate")

    def _receive_other(self, fd: int) -> None:
        if fd == self._control.lifeline:
            exit_parent_lost()
        elif fd == self._control.channel.fileno():
            self._receive_control()
        else:
            self._receive_zeromq()

    def _receive_zeromq(self) -> bool:
        """Receive every frame that has come by ZeroMQ; whether there was any."""
        assert self._zeromq is not None, "this worker has no such socket"
        received = False
        while (packet := self._zeromq.receive()) is not None:
            received = True
            identity, frame = packet
            if self._links.by_identity.get(identity) is None:
                self._receive_control()  # a gateway is attached before it sends, but over another channel
            link = self._links.by_identity.get(identity)
            if link is None:
                self._on_unexpected("a frame of a gateway that is not attached")
                continue
            try:
                records, now_ns = unpack_records(frame), time.monotonic_ns()
                if self._handler.queue.size or not self._handler.known.take(link, records, now_ns):
                    self._on_other_records(link, records, now_ns)
            except WireError as error:
                self._on_unexpected(f"a malformed frame: {error}")
        return received

    def _receive_control(self) -> None:
        try:
            while (received := self._control.channel.receive()) is not None:
                data, fds = received
                match decode(data, TO_WORKER):
                    case AttachGateway() as attach if len(fds) == 1 and not self._steps.is_offloaded:
                        self._links.attach(attach, fds.pop())
                    case OffloadModel() | RestoreModel() | StopWorker() as step:
                        self._steps.due.append(step)
                    case other:
                        log.warning("ignored a %s with %d descriptors", type(other).__name__, len(fds))
                close_fds(fds)
        except ChannelClosed:
            exit_parent_lost()

    def _on_unexpected(self, what: str) -> None:
        self._unexpected += 1
        if self._unexpected & (self._unexpected - 1) == 0:  # at 1, 2, 4, …: a flood cannot fill the log
            log.warning("ignored %s (%d such so far)", what, self._unexpected)

    # Running.

    def _run_queued(self) -> None:
        """Run batches while they are quick, then send the replies; sleep if the next batch waits for more requests."""
        handler, policy = self._handler, self._handler.policy
        began_ns = now_ns = time.monotonic_ns()
        until_ns = 0
        ran = 0 if policy.can_batch else handler.run_singly(now_ns)
        if ran:
            now_ns = time.monotonic_ns()
        while (
            (handler.queue.size or handler.known.waiting)
            and not until_ns
            and ran < MAX_BATCH_REQUESTS
            and (now_ns == began_ns or policy.has_time_for_run(now_ns - began_ns))
        ):
            together, until_ns = handler.run_next_batch(now_ns)
            ran += together
            now_ns = time.monotonic_ns()
        self._end_runs(now_ns, ran)
        if until_ns and not self._receive_all(0):
            self._wait_for_requests(until_ns - now_ns)

    def _run_known(self) -> None:
        """Run known requests while they are quick, then send the replies."""
        handler, policy = self._handler, self._handler.policy
        if handler.queue.ran_starving:
            handler.queue.on_uncontested_run()
        runs = policy.runs
        now_ns = handler.known_runner.run(policy, time.monotonic_ns())
        self._end_runs(now_ns, policy.runs - runs)

    def _end_runs(self, now_ns: int, ran: int) -> None:
        """After the last run of an iteration, in which `ran` requests took part: send the replies."""
        handler = self._handler
        if self._links.calls is not None:
            for link, records in self._links.calls.take_deferred():
                self._on_other_records(link, records, now_ns)
        if ran and handler.policy.can_delay:
            self._receive_all(0)  # before the replies go out: what is here now is of other callers
            handler.policy.concurrency.record(ran + handler.queue.size + len(handler.known.waiting))
        self._housekeeping.trim_schedule.last_run_ns = now_ns
        self._page.idle(now_ns)
        if handler.replies.pending.results:
            handler.replies.expire_pending(now_ns)
        for closed in self._outbox.flush():
            handler.drop_link(closed)
        if handler.policy.runs >= self._housekeeping.due_at_run:
            self._housekeeping.after_run(handler.policy.runs)

    def _wait_for_requests(self, left_ns: int) -> None:
        """Sleep until a gateway sends or the time is up; `select` is finer than the milliseconds of `poll`."""
        fds = [*self._links.by_fd, self._control.channel.fileno()]
        if self._zeromq is not None:
            fds.append(self._zeromq.fileno())
        left_s = min(max(left_ns, 0) / 1e9, self._heartbeat_ms / 1000)
        if max(fds) < SELECT_LIMIT:
            select.select(fds, [], [], left_s)
        else:
            self._poller.poll(left_s * 1000)
