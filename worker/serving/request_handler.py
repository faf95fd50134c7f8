"""Handles requests from their arrival to their run: queues them, reads their inputs, runs them in batches.

Does not cover: sockets (loop.py), the order of the queue and the choice of a batch (batching/), the run itself
(execution/executor.py), writing replies (reply_writer.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.calls import CallReply, GrantCall
from mmsup.ipc.messages.data import (
    Cancel,
    ForgetHandle,
    GrantBuffer,
    Infer,
    InferReply,
    InferWithRegions,
    TensorLocation,
)
from mmsup.ipc.tensors.numpy_arrays import Array, as_array
from mmsup.ipc.transport.codec import read_records
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS, next_batch
from mmsup.worker.batching.priority_queue import PriorityQueue, QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignatureCache, SignatureInput
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure, failure_of
from mmsup.worker.execution.request_parameters import PARAMETERS
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.inline_batch import InlineBatchRunner
from mmsup.worker.serving.known_queue import KnownQueue
from mmsup.worker.serving.known_runner import KnownRunner
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.serving.reply_writer import ReplyWriter


class RequestHandler:
    def __init__(
        self, executor: Executor, page: StatusPageWriter, outbox: Outbox, *, use_known_requests: bool = True
    ) -> None:
        """`use_known_requests`: false treats every request as an ordinary one, for tests."""
        self.queue: PriorityQueue[GatewayLink] = PriorityQueue(executor.spec)
        self.policy = BatchPolicy(executor.spec, executor.metadata.max_batch_size)
        self.replies = ReplyWriter(executor, page, outbox)
        is_enabled = use_known_requests and not executor.spec.queue_policies and not executor.spec.interface
        self.known = KnownQueue(executor.metadata, self.queue.default_priority, is_enabled=is_enabled)
        self._inline_batches = InlineBatchRunner(executor, page, self.policy, self.replies, outbox, self.known)
        self.known_runner = KnownRunner(self.known, executor, page, self.replies, outbox)
        self._signatures = RequestSignatureCache()
        self._executor = executor
        self._has_batch_axis = executor.metadata.max_batch_size > 0
        self._page = page
        self._outbox = outbox
        self._is_batch_delayed = False

    # Messages of a gateway.

    def on_records(self, link: GatewayLink, records: list[Any], now_ns: int) -> Sequence[str]:  # of `unpack_records`
        """Handle the records of a frame that `known` did not take; returns the kinds of those that no gateway may send
        to a worker. WireError for a malformed one."""
        self.queue_known()
        return self._on_messages(link, read_records(link.apply_extents(records)), now_ns)

    def _on_messages(self, link: GatewayLink, messages: Iterable[Any], now_ns: int) -> list[str]:  # of any kind
        rejected: list[str] = []
        for message in messages:
            if isinstance(message, Infer):
                if type(message) is InferWithRegions and not self.replies.copy_in(link, message):
                    continue
                if not self._on_infer(link, message, now_ns):
                    rejected.append("Infer")
            elif isinstance(message, GrantBuffer):
                self.replies.on_grant(link, message)
            elif isinstance(message, Cancel):
                self._on_cancel(link, message)
            elif isinstance(message, GrantCall | CallReply) and link.model_calls is not None:
                link.model_calls.on_records(link, [message])
            elif isinstance(message, ForgetHandle):
                self.replies.regions.forget(message.handle)
            else:
                rejected.append(type(message).__name__)
        return rejected

    def _on_infer(self, link: GatewayLink, message: Infer, now_ns: int) -> bool:
        """Queue a request; False if it is malformed or a duplicate."""
        signature = self._signatures.parsed.recent.get(message.signature)
        if signature is None:
            try:
                signature = self._signatures.get(message.signature)
            except WireError:
                return False
        queue = self.queue
        priority = queue.effective_priority(signature.priority) if signature.priority else queue.default_priority
        request = QueuedRequest(link, message, signature, now_ns, priority)
        if queue.has(request) or len(message.locations) != len(signature.inputs):
            return False
        if not queue.add(request):
            name = self._executor.spec.name
            text = f"Exceeds maximum queue size: model '{name}' takes no more of priority {priority} now"
            self.replies.reply_failure(request, ModelFailure("queue_full", text))
        return True

    def _on_cancel(self, link: GatewayLink, cancel: Cancel) -> None:
        if self.queue.cancel(link, cancel.id) or self.replies.pending.pop((link, cancel.id)) is not None:
            self._outbox.add(link, InferReply(cancel.id, "cancelled", "the request was cancelled"))

    def drop_link(self, link: GatewayLink) -> None:
        self.known.drop_link(link)
        self.queue.drop_link(link)
        self.replies.pending.drop_link(link)
        self._outbox.replies.pop(link, None)

    def flush(self) -> None:
        for closed in self._outbox.flush():
            self.drop_link(closed)

    def is_drained(self, now_ns: int) -> bool:  # noqa: ARG002 - as models with sequences have it
        """Whether the worker may stop, or its model move out of memory, where nothing is left to run."""
        return True

    # Runs.

    def run_next_batch(self, now_ns: int) -> tuple[int, int]:
        """Run the next batch unless it has to wait for more requests; returns how many ran, and when to ask again
        unless a request comes before, 0 if that is not to be waited for."""
        queue, policy = self.queue, self.policy
        rule = policy.rule()
        if self.known.waiting:
            if size := self._inline_batches.run_waiting(now_ns, rule):
                self._is_batch_delayed = False
                queue.on_uncontested_run()
                return size, 0
            self.queue_known()
        if queue.has_timeouts:
            for request in queue.pop_timed_out(now_ns):
                self.replies.reply_expired(request, now_ns)
        batch = next_batch(queue.in_order(now_ns), now_ns, rule)
        for request in batch.expired:
            queue.remove(request)
            self.replies.reply_expired(request, now_ns)
        if batch.requests:
            if self._is_batch_delayed and len(batch.requests) < rule.expected_requests:
                policy.concurrency.reset()
            self._run_batch(batch.requests, now_ns)
        self._is_batch_delayed = batch.wait_until_ns > 0
        return len(batch.requests), batch.wait_until_ns

    def queue_known(self) -> None:
        """Queue known requests as ordinary ones."""
        for request in self.known.release():
            self.queue.add(request)

    def run_singly(self, now_ns: int) -> int:
        """Run requests one by one while their runs are quick; returns how many. For a model without batches, as long
        as all requests are of one priority: `run_next_batch` has the same effect at twice the price."""
        queue, ran, began_ns = self.queue.only_queue(), 0, now_ns
        if queue:
            self.queue.on_uncontested_run()
        while queue:
            request = self.queue.pop(queue)
            if request.message.deadline_ns <= now_ns:
                self.replies.reply_expired(request, now_ns)
                continue
            self._run_one(request, now_ns)
            ran += 1
            if not queue or ran >= MAX_BATCH_REQUESTS:
                break
            now_ns = time.monotonic_ns()
            if not self.policy.has_time_for_run(now_ns - began_ns):
                break
        return ran

    def _run_one(self, request: WorkerRequest, started_ns: int) -> None:
        inputs = self._inputs(request)
        if isinstance(inputs, ModelFailure):
            self.replies.reply_failure(request, inputs)
            return
        message, signature, executor = request.message, request.signature, self._executor
        self.queue.running = (request,)
        if signature.runs_alone:
            self.flush()
        if executor.spec.interface:
            PARAMETERS.set(signature.parameters)
        buffers = self._output_buffers(request, inputs) if executor.uses_output_buffers else NO_BUFFERS
        ready_ns = time.monotonic_ns()
        self._page.batch_started((message.id,), ready_ns)
        result = executor.run_one(inputs, signature.outputs, buffers)
        done_ns = time.monotonic_ns()
        self.policy.on_run(signature.rows, done_ns - started_ns)
        rows = signature.rows if self._has_batch_axis else 1
        inline = None
        if not isinstance(result, ModelFailure) and type(message) is Infer:
            inline = self.replies.signatures.inline_reply(result)
        queue_ns, input_ns, infer_ns = started_ns - request.arrived_ns, ready_ns - started_ns, done_ns - ready_ns
        if inline is None or isinstance(result, ModelFailure):
            self.replies.reply(request, result, RunTimes(queue_ns, input_ns, infer_ns, done_ns, 1, rows))
        else:
            times = queue_ns, input_ns, infer_ns, time.monotonic_ns() - done_ns, 1, rows
            self._outbox.add(request.link, InferReply(message.id, "", "", *inline, 0, *times))
            self.known.learn(request, result, inline[0])
        self._page.batch_executed(1)
        if signature.runs_alone:
            self.flush()

    def _run_batch(self, batch: list[WorkerRequest], started_ns: int) -> None:
        for request in batch:
            self.queue.remove(request)
        self.queue.on_run_start(batch[0])
        self.queue.running = batch
        if len(batch) == 1:
            self._run_one(batch[0], started_ns)
            return
        if self._executor.spec.interface:
            PARAMETERS.set(batch[0].signature.parameters)
        if self._inline_batches.run(batch, started_ns):
            return
        runs_alone = batch[0].signature.runs_alone
        if runs_alone:
            self.flush()
        requests: list[WorkerRequest] = []
        jobs: list[Arrays] = []
        for request in batch:
            inputs = self._inputs(request)
            if isinstance(inputs, ModelFailure):
                self.replies.reply_failure(request, inputs)
            else:
                requests.append(request)
                jobs.append(inputs)
        count = len(requests)
        if not count:
            return
        buffers: list[OutputBuffers] = []
        if self._executor.uses_output_buffers:
            buffers = [self._output_buffers(*each) for each in zip(requests, jobs, strict=True)]
        ready_ns = time.monotonic_ns()
        self._page.batch_started([request.message.id for request in requests], ready_ns)
        results = self._executor.run(jobs, batch[0].signature.outputs, buffers)
        done_ns = time.monotonic_ns()
        rows = sum([request.signature.rows for request in requests])
        self.policy.on_run(rows, done_ns - started_ns)
        if not self._has_batch_axis:
            rows = 1
        for request, result in zip(requests, results, strict=True):
            queue_ns = started_ns - request.arrived_ns
            times = RunTimes(queue_ns, ready_ns - started_ns, done_ns - ready_ns, done_ns, count, rows)
            self.replies.reply(request, result, times)
        self._page.batch_executed(count)
        if runs_alone:
            self.flush()

    def _output_buffers(self, request: WorkerRequest, inputs: Arrays) -> OutputBuffers:
        """Where in the granted memory the engine may write its outputs, as far as their layout is known."""
        grant = request.message.output_buffer
        view = request.link.view(*grant, writable=True) if grant is not None else None
        return NO_BUFFERS if view is None else self._executor.output_buffers(inputs, request.signature.outputs, view)

    def _inputs(self, request: WorkerRequest) -> Arrays | ModelFailure:
        """The inputs of a request, as views over shared memory where possible."""
        inputs: Arrays = {}
        for each, location in zip(request.signature.inputs, request.message.locations, strict=True):
            try:
                if type(location) is bytes and each.dtype is not None and len(location) == each.size_bytes:
                    inputs[each.name] = np.ndarray(each.shape, each.dtype, location)
                else:
                    inputs[each.name] = _read_input(request.link, each, location)
            except (ValueError, LookupError, OverflowError):  # the gateway has checked what it sent: a bug of ours
                text = f"input '{each.name}' did not reach model '{self._executor.spec.name}' whole"
                return ModelFailure("internal", text)
            except MemoryError as error:
                return failure_of(error, self._executor.spec)
        return inputs


def _read_input(link: GatewayLink, declared: SignatureInput, location: TensorLocation) -> Array:
    data = link.view(*location, writable=False) if isinstance(location, tuple) else location
    if data is None:
        raise ValueError("it is in memory that is not mapped")
    return as_array(data, declared.datatype, declared.shape)
