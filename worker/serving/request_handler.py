"""Every request that is here, from its arrival to its one reply: waiting, running, or kept until there is room.

Covers: reading inputs, wording what went wrong on the way, results and their grants.
Does not cover: sockets (loop.py), who is next (waiting.py), which requests run together and when (batch.py), running
them (execute.py).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Final

import numpy as np

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.data import Cancel, GrantBuffer, Infer, InferReply, TensorLocation
from mmsup.ipc.tensors.numpy_arrays import Array, as_array
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS, Batch, QueuedRequest, next_batch
from mmsup.worker.batching.priority_queue import PriorityQueue
from mmsup.worker.batching.request_signature import RequestSignatureCache, SignatureInput
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure, failure_of
from mmsup.worker.execution.model_errors_guard import call_model_code
from mmsup.worker.execution.outputs import OutputBytes, ReplySignatureCache, buffer_bytes, place_outputs
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import PendingResult, PendingResults, RunTimes

NO_TIMES: Final = RunTimes(0, 0, 0, 0, 1)


class RequestHandler:
    """Used by the loop alone."""

    def __init__(self, execution: Executor, page: StatusPageWriter, outbox: Outbox) -> None:
        self.queue = PriorityQueue(execution.spec)
        self.policy = BatchPolicy(execution.spec, execution.metadata.max_batch_size)
        self.pending = PendingResults()
        self._signatures = RequestSignatureCache()
        self._reply_signatures = ReplySignatureCache({each.name: each.datatype for each in execution.metadata.outputs})
        self._executor = execution
        self._page = page
        self._outbox = outbox
        self._model = execution.spec.name
        self._is_batch_delayed = False

    # In.

    def on_message(self, link: GatewayLink, record: Any, now_ns: int) -> bool:  # a record of any kind
        """What a gateway says; False if it is nothing that a gateway may say."""
        if isinstance(record, Infer):
            return self._on_infer(link, record, now_ns)
        if isinstance(record, GrantBuffer):
            self._on_grant(link, record)
        elif isinstance(record, Cancel):
            self._on_drop(link, record)
        else:
            return False
        return True

    def _on_infer(self, link: GatewayLink, request: Infer, now_ns: int) -> bool:
        try:
            kind = self._signatures.get(request.signature)
        except WireError:
            return False
        waiting = self.queue
        work = QueuedRequest(
            link,
            request,
            kind,
            now_ns,
            waiting.priority_of(kind.priority) if kind.priority else waiting.default_priority,
        )
        if waiting.has(work) or len(request.locations) != len(kind.inputs):
            return False
        if not waiting.add(work):
            text = f"Exceeds maximum queue size: model '{self._model}' takes no more of priority {work.level} now"
            self._reply_failure(work, ModelFailure("queue_full", text))
        return True

    def _on_drop(self, link: GatewayLink, drop: Cancel) -> None:
        if self.queue.drop(link, drop.id) is not None or self.pending.pop((link, drop.id)) is not None:
            self._outbox.add(link, InferReply(drop.id, "cancelled", "the request was cancelled"))

    def _on_grant(self, link: GatewayLink, grant: GrantBuffer) -> None:
        result = self.pending.pop((link, grant.id))
        if result is not None:  # else it had expired, and its reply is on the way
            self._reply_outputs(result.request, result.outputs, result.times, (grant.segment, grant.offset, grant.size))

    def drop_link(self, link: GatewayLink) -> None:
        """A link is over, and nobody waits for what it asked."""
        self.queue.drop_link(link)
        self.pending.drop_link(link)
        self._outbox.discard(link)

    def expire_pending(self, now_ns: int) -> None:
        """Answer for results that were kept past their deadline."""
        for work in self.pending.expire(now_ns):
            text = f"Request timeout expired: the result of model '{self._model}' had to wait for room"
            self._reply_failure(work, ModelFailure("deadline_exceeded", text))

    # Running.

    def run_next_batch(self, now: int) -> Batch:
        """Run what is next, if its time has come; what that was, or until when it waits for company."""
        waiting, pace = self.queue, self.policy
        if waiting.has_timeouts:
            for work in waiting.pop_timed_out(now):
                self._reply_expired(work, now)
        rule = pace.rule()
        taken = next_batch(waiting.in_order(now), now, rule)
        for work in taken.expired:
            waiting.remove(work)
            self._reply_expired(work, now)
        if taken.requests:
            if self._is_batch_delayed and len(taken.requests) < rule.expected_requests:
                pace.on_wait_timeout()
            self._run_batch(taken.requests, now)
        self._is_batch_delayed = taken.wait_until_ns > 0
        return taken

    def run_singly(self, now: int) -> int:
        """Run all that waits, one by one, while that goes quickly; how many. For a model that makes no batches, as long
        as all requests are of one class: `serve` would come to the same, at twice the price."""
        line, pace, ran, began = self.queue.only_queue(), self.policy, 0, now
        while line and ran < MAX_BATCH_REQUESTS and pace.has_time_for_run(now - began):
            work = self.queue.pop(line)
            if work.request.deadline_ns <= now:
                self._reply_expired(work, now)
                continue
            self._run_one(work, now)
            ran += 1
            now = time.monotonic_ns()
        return ran

    def _run_one(self, work: QueuedRequest, started_ns: int) -> None:
        job = self._inputs(work)
        if isinstance(job, ModelFailure):
            self._reply_failure(work, job)
            return
        if work.kind.alone:
            self.flush()
        page, execution = self._page, self._executor
        page.request_started(work.request.id)
        room = self._output_buffers([work], [job])[0] if execution.uses_output_buffers else NO_BUFFERS
        ready = time.monotonic_ns()
        outcome = execution.run_one(job, work.kind.outputs, room)
        done = time.monotonic_ns()
        self.policy.on_run(work.kind.rows, done - started_ns)
        small = None if isinstance(outcome, ModelFailure) else self._reply_signatures.inline_reply(outcome)
        if small is None:
            self._reply_result(
                work, outcome, RunTimes(started_ns - work.arrived_ns, ready - started_ns, done - ready, done, 1)
            )
        else:
            words, places = small
            took = started_ns - work.arrived_ns, ready - started_ns, done - ready, time.monotonic_ns() - done, 1
            self._outbox.add(work.link, InferReply(work.request.id, "", "", words, places, 0, *took))
        page.batch_executed(1)
        if work.kind.alone:
            self.flush()

    def _reply_expired(self, work: QueuedRequest, now: int) -> None:
        text = f"Request timeout expired in the queue of model '{self._model}'"
        self._reply_failure(
            work, ModelFailure("deadline_exceeded", text), RunTimes(now - work.arrived_ns, 0, 0, now, 1)
        )

    def _run_batch(self, batch: list[QueuedRequest], started_ns: int) -> None:
        waiting, page = self.queue, self._page
        for work in batch:
            waiting.remove(work)
        waiting.on_run_start(batch[0])
        is_alone = batch[0].kind.alone
        if is_alone:
            self.flush()
        jobs: list[Arrays] = []
        runs: list[QueuedRequest] = []
        for work in batch:
            job = self._inputs(work)
            if isinstance(job, ModelFailure):
                self._reply_failure(work, job)
                continue
            jobs.append(job)
            runs.append(work)
            page.request_started(work.request.id)
        count = len(runs)
        if not count:
            return
        wanted = batch[0].kind.outputs
        rooms = self._output_buffers(runs, jobs) if self._executor.uses_output_buffers else ()
        ready = time.monotonic_ns()
        outcomes = self._executor.run(jobs, wanted, rooms)
        done = time.monotonic_ns()
        self.policy.on_run(
            runs[0].kind.rows if count == 1 else sum([work.kind.rows for work in runs]), done - started_ns
        )
        for work, outcome in zip(runs, outcomes, strict=True):
            self._reply_result(
                work, outcome, RunTimes(started_ns - work.arrived_ns, ready - started_ns, done - ready, done, count)
            )
        page.batch_executed(count)
        if is_alone:
            self.flush()

    def _output_buffers(self, runs: list[QueuedRequest], jobs: list[Arrays]) -> list[OutputBuffers]:
        """Where the outputs of each will lie, as far as memory was granted and anybody knows."""
        rooms: list[OutputBuffers] = []
        for work, job in zip(runs, jobs, strict=True):
            grant = work.request.output_buffer
            view = work.link.view(*grant, writable=True) if grant is not None else None
            rooms.append(
                self._executor.output_buffers(job, work.kind.outputs, view) if view is not None else NO_BUFFERS
            )
        return rooms

    def _inputs(self, work: QueuedRequest) -> Arrays | ModelFailure:
        """The inputs of a request, as views where they lie well."""
        job: Arrays = {}
        for each, where in zip(work.kind.inputs, work.request.locations, strict=True):
            try:
                if type(where) is bytes and each.dtype is not None and len(where) == each.size:
                    job[each.name] = np.ndarray(each.shape, each.dtype, where)
                else:
                    job[each.name] = self._input(work.link, each, where)
            except (ValueError, LookupError, OverflowError):  # what the gateway says, it has checked: a bug of ours
                return ModelFailure("internal", f"input '{each.name}' did not reach model '{self._model}' whole")
            except MemoryError as error:
                return failure_of(error, self._executor.spec)
        return job

    @staticmethod
    def _input(link: GatewayLink, given: SignatureInput, where: TensorLocation) -> Array:
        data = link.view(*where, writable=False) if isinstance(where, tuple) else where
        if data is None:
            raise ValueError("it lies in memory that was not shared")
        return as_array(data, given.datatype, given.shape)

    # Out.

    def flush(self) -> None:
        """Send what is to be said; a link that is over is forgotten."""
        for link in self._outbox.flush():
            self.drop_link(link)

    def _reply_result(self, work: QueuedRequest, outcome: Arrays | ModelFailure, times: RunTimes) -> None:
        if isinstance(outcome, ModelFailure):
            self._reply_failure(work, outcome, times)
            return
        small = self._reply_signatures.inline_reply(outcome)
        if small is not None:
            self._reply(work, *small, times)
            return
        outputs = self._executor.encode_outputs(outcome)
        if isinstance(outputs, ModelFailure):
            self._reply_failure(work, outputs, times)
        else:
            self._reply_outputs(work, outputs, times, work.request.output_buffer)

    def _reply_outputs(
        self, work: QueuedRequest, outputs: tuple[OutputBytes, ...], times: RunTimes, grant: tuple[int, int, int] | None
    ) -> None:
        """Reply with the outputs, or ask for the room that they need. `grant` is segment, offset and size."""
        need = buffer_bytes(outputs)
        if not need:
            self._reply(work, self._reply_signatures.signature(outputs), place_outputs(outputs, None, -1, 0), times)
            return
        if grant is None or grant[2] < need:
            self._hold(PendingResult(work, outputs, times), need)
            return
        segment, offset, _ = grant
        view = work.link.view(segment, offset, need, writable=True)
        if view is None:
            self._reply_failure(
                work, ModelFailure("internal", f"the room for the outputs of model '{self._model}' is not there")
            )
            return
        self._reply(
            work, self._reply_signatures.signature(outputs), place_outputs(outputs, view, segment, offset), times
        )

    def _hold(self, result: PendingResult, need: int) -> None:
        kept = call_model_code(
            partial(self.pending.add, result), self._executor.spec
        )  # the copy may not fit under the cap
        work, times = result.request, result.times
        if kept is True:
            took = self._timings(times)
            self._outbox.add(work.link, InferReply(work.request.id, "", "", b"", (), need, *took))
            return
        text = f"too many results of model '{self._model}' wait for room"
        self._reply_failure(work, kept if isinstance(kept, ModelFailure) else ModelFailure("no_buffer", text))

    def _reply(self, work: QueuedRequest, words: bytes, places: tuple[TensorLocation, ...], times: RunTimes) -> None:
        self._outbox.add(work.link, InferReply(work.request.id, "", "", words, places, 0, *self._timings(times)))

    @staticmethod
    def _timings(times: RunTimes) -> tuple[int, int, int, int, int]:
        output_ns = time.monotonic_ns() - times.done_ns
        return times.queue_ns, times.input_ns, times.infer_ns, output_ns, times.batch

    def _reply_failure(self, work: QueuedRequest, failure: ModelFailure, times: RunTimes = NO_TIMES) -> None:
        if failure.code == "gpu_oom":
            self._page.request_refused()
        took = (times.queue_ns, times.input_ns, times.infer_ns, 0, times.batch)
        self._outbox.add(work.link, InferReply(work.request.id, failure.code, failure.text, b"", (), 0, *took))
