"""Writes replies: the outputs of a run, small ones into the reply and large ones into the granted buffer, or an error.

Outputs that need a larger buffer than was granted become pending results, until the gateway grants one.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from mmsup.ipc.errors import MODEL_CODES
from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.data import GrantBuffer, InferReply, InferWithRegions, TensorLocation
from mmsup.worker.client_memory.device_regions import DeviceRegions, process_handles
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.outputs import OutputBytes, ReplySignatureCache, buffer_bytes, encode_outputs, place_outputs
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import PendingResult, PendingResults, RunTimes, WorkerRequest

NO_TIMES: Final = RunTimes(0, 0, 0, 0, 1, 1)


class ReplyWriter:
    def __init__(self, executor: Executor, page: StatusPageWriter, outbox: Outbox) -> None:
        self.pending = PendingResults()
        self.signatures = ReplySignatureCache({each.name: each.datatype for each in executor.metadata.outputs})
        self.regions = DeviceRegions(executor.spec, process_handles())
        """Memory of a GPU that clients share."""
        self._executor = executor
        self._page = page
        self._outbox = outbox
        self._model = executor.spec.name

    def reply(self, request: WorkerRequest, result: Arrays | ModelFailure, times: RunTimes) -> None:
        if isinstance(result, ModelFailure):
            self.reply_failure(request, result, times)
            return
        message = request.message
        inline = self.signatures.inline_reply(result) if type(message) is not InferWithRegions else None
        if inline is not None:
            self._add(request, *inline, times)
            return
        outputs = call_model_code(encode_outputs, self._executor.spec, result)  # elements of BYTES may raise
        if isinstance(outputs, ModelFailure):
            self.reply_failure(request, outputs, times)
        elif isinstance(message, InferWithRegions) and (failure := self.regions.copy_out(message, outputs)) is not None:
            self.reply_failure(request, failure, times)
        else:
            self._reply_outputs(request, outputs, times, request.message.output_buffer)

    def copy_in(self, link: GatewayLink, message: InferWithRegions) -> bool:
        """Copy the inputs of a request out of its client's memory; if that fails, reply and return False."""
        failure = self.regions.copy_in(message)
        if failure is not None:
            self._outbox.add(link, InferReply(message.id, self._code(failure), failure.text))
        return failure is None

    def _code(self, failure: ModelFailure) -> str:
        if failure.code == "gpu_oom":
            self._page.request_refused()
        return failure.code if failure.code in MODEL_CODES else "inference_failed"  # a model may raise errors of ours

    def reply_failure(self, request: WorkerRequest, failure: ModelFailure, times: RunTimes = NO_TIMES) -> None:
        code = self._code(failure)
        took = (times.queue_ns, times.input_ns, times.infer_ns, 0, times.batch, times.rows)
        self._outbox.add(request.link, InferReply(request.message.id, code, failure.text, b"", (), 0, *took))

    def reply_expired(self, request: WorkerRequest, now_ns: int) -> None:
        """Reply to a request that was past its deadline, or past the timeout of its priority, before it could run."""
        text = f"Request timeout expired in the queue of model '{self._model}'"
        times = RunTimes(now_ns - request.arrived_ns, 0, 0, now_ns, 1, 1)
        self.reply_failure(request, ModelFailure("deadline_exceeded", text), times)

    def on_grant(self, link: GatewayLink, grant: GrantBuffer) -> None:
        """Write a pending result into the buffer that was granted for it."""
        result = self.pending.pop((link, grant.id))
        if result is not None:  # else it expired, and the reply that says so is on its way
            self._reply_outputs(result.request, result.outputs, result.times, (grant.segment, grant.offset, grant.size))

    def expire_pending(self, now_ns: int) -> None:
        """Reply to requests whose results are pending past their deadline."""
        for request in self.pending.expire(now_ns):
            text = f"Request timeout expired: the result of model '{self._model}' had to wait for a buffer"
            self.reply_failure(request, ModelFailure("deadline_exceeded", text))

    def _reply_outputs(
        self,
        request: WorkerRequest,
        outputs: tuple[OutputBytes, ...],
        times: RunTimes,
        buffer: tuple[int, int, int] | None,
    ) -> None:
        """Reply with the outputs, or ask for the buffer that they need. `buffer` is segment, offset and size."""
        needed = buffer_bytes(outputs)
        if not needed:
            self._add(request, self.signatures.signature(outputs), place_outputs(outputs, None, -1, 0), times)
            return
        if buffer is None or buffer[2] < needed:
            self._hold(PendingResult(request, outputs, times), needed)
            return
        segment, offset, _ = buffer
        view = request.link.view(segment, offset, needed, writable=True)
        if view is None:
            text = f"the buffer for the outputs of model '{self._model}' is not mapped"
            self.reply_failure(request, ModelFailure("no_buffer", text))
            return
        locations = place_outputs(outputs, view, segment, offset)
        self._add(request, self.signatures.signature(outputs), locations, times)

    def _hold(self, result: PendingResult, needed_bytes: int) -> None:
        """Keep a result and ask for a buffer. The copy may not fit under the memory cap."""
        held = call_model_code(partial(self.pending.add, result), self._executor.spec)
        request, times = result.request, result.times
        if held is True:
            reply = InferReply(request.message.id, "", "", b"", (), needed_bytes, *_timings(times))
            self._outbox.add(request.link, reply)
            return
        text = f"too many results of model '{self._model}' wait for a buffer"
        self.reply_failure(request, held if isinstance(held, ModelFailure) else ModelFailure("no_buffer", text))

    def _add(
        self, request: WorkerRequest, signature: bytes, locations: tuple[TensorLocation, ...], times: RunTimes
    ) -> None:
        reply = InferReply(request.message.id, "", "", signature, locations, 0, *_timings(times))
        self._outbox.add(request.link, reply)


def _timings(times: RunTimes) -> tuple[int, int, int, int, int, int]:
    output_ns = time.monotonic_ns() - times.done_ns
    return times.queue_ns, times.input_ns, times.infer_ns, output_ns, times.batch, times.rows
