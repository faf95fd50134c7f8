"""Runs a batch of requests whose tensors all travel in the messages: their inputs are gathered once, and the outputs
scattered once.

The effect is that of `RequestHandler._run_batch`, which runs every other batch. An array for each request, stacking
and splitting took more than half of what a batch of 16 costs beside the run of its model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.transport.codec import RESULT
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.execution.batch_arrays import Arrays, split
from mmsup.worker.execution.executor import Executor
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.serving.reply_writer import ReplyWriter

_ALL_INLINE: Final = frozenset({bytes})


class InlineBatchRunner:
    def __init__(
        self, executor: Executor, page: StatusPageWriter, policy: BatchPolicy, replies: ReplyWriter, outbox: Outbox
    ) -> None:
        self._executor = executor
        self._page = page
        self._policy = policy
        self._replies = replies
        self._outbox = outbox

    def run(self, batch: Sequence[WorkerRequest], started_ns: int) -> bool:
        """Run these requests, which share a batch key, and reply; False if one is not of this kind, and nothing was
        done."""
        inputs = gathered(batch) if self._executor.stacks_batches else None
        if inputs is None:
            return False
        sizes = [request.signature.rows for request in batch]
        ready_ns = time.monotonic_ns()
        self._page.batch_started([request.message.id for request in batch], ready_ns)
        results = self._executor.run_stacked(inputs, sizes, batch[0].signature.outputs)
        done_ns = time.monotonic_ns()
        count, rows = len(batch), sum(sizes)
        self._policy.on_run(rows, done_ns - started_ns)
        input_ns, infer_ns = ready_ns - started_ns, done_ns - ready_ns
        parts = None if isinstance(results, list) else self._replies.signatures.inline_parts(results, sizes)
        if parts is None:
            each_result = results if isinstance(results, list) else split(results, sizes)
            for request, result in zip(batch, each_result, strict=True):
                times = RunTimes(started_ns - request.arrived_ns, input_ns, infer_ns, done_ns, count, rows)
                self._replies.reply(request, result, times)
        else:
            output_ns = time.monotonic_ns() - done_ns
            unsent = {link: self._outbox.unsent(link) for link in {request.link for request in batch}}
            for request, (signature, data) in zip(batch, parts, strict=True):
                queue_ns = started_ns - request.arrived_ns
                times_ns = queue_ns, input_ns, infer_ns, output_ns
                unsent[request.link].append([RESULT, request.message.id, signature, *times_ns, count, rows, *data])
        self._page.batch_executed(count)
        return True


def gathered(batch: Sequence[WorkerRequest]) -> Arrays | None:
    """The inputs of requests that share a batch key, stacked; None if one is not whole in its message, has elements of
    any length, or was granted a buffer for its outputs. Pure."""
    first = batch[0].signature
    messages = [request.message for request in batch]
    if any(message.output_buffer is not None for message in messages):
        return None
    rows = sum([request.signature.rows for request in batch])
    inputs: Arrays = {}
    for place, declared in enumerate(first.inputs):
        parts = [message.locations[place] for message in messages]
        sizes = [request.signature.inputs[place].size_bytes for request in batch]
        if declared.dtype is None or not _ALL_INLINE.issuperset(map(type, parts)):
            return None
        if [len(part) for part in parts] != sizes:
            return None
        try:
            data = b"".join(parts)  # type: ignore[arg-type] # all are bytes
        except MemoryError:
            return None
        inputs[declared.name] = np.ndarray((rows, *declared.shape[1:]), declared.dtype, data)
    return inputs
