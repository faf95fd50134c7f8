"""Runs a batch of requests whose tensors all travel in the messages: their inputs are gathered once, and the outputs
scattered once.

The effect is that of `RequestHandler._run_batch`, which runs every other batch. An array for each request, stacking
and splitting took more than half of what a batch of 16 costs beside the run of its model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.transport.codec import RESULT
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS, BatchRule, batch_of_alike
from mmsup.worker.execution.batch_arrays import Arrays, split
from mmsup.worker.execution.executor import Executor, Result
from mmsup.worker.execution.outputs import slices
from mmsup.worker.serving.known_queue import DEADLINE, KnownQueue, KnownSignature, WaitingRequest
from mmsup.worker.serving.outbox import Outbox, PlainReply
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.serving.reply_writer import ReplyWriter

_ALL_INLINE: Final = frozenset({bytes})


class InlineBatchRunner:
    def __init__(
        self,
        executor: Executor,
        page: StatusPageWriter,
        policy: BatchPolicy,
        replies: ReplyWriter,
        outbox: Outbox,
        known: KnownQueue,
    ) -> None:
        self._executor = executor
        self._page = page
        self._policy = policy
        self._replies = replies
        self._outbox = outbox
        self._known = known

    def run(self, batch: Sequence[WorkerRequest], started_ns: int) -> bool:
        """Run these requests, which share a batch key, and reply; False if one is not of this kind, and nothing was
        done."""
        inputs = gathered(batch) if self._executor.stacks_batches else None
        if inputs is None:
            return False
        sizes = [request.signature.rows for request in batch]
        numbers = [request.message.id for request in batch]
        results, times = self._run(inputs, sizes, numbers, batch[0].signature.outputs, started_ns)
        self._reply(batch, results, sizes, times, started_ns)
        self._page.batch_executed(len(batch))
        return True

    def run_waiting(self, started_ns: int, rule: BatchRule) -> int:
        """Run the first of the known requests that wait, if they make up the next batch; returns how many ran."""
        waiting = self._known.waiting
        size = known_batch_size(waiting, started_ns, rule) if self._executor.stacks_batches else 0
        inputs = _known_inputs(waiting[:size]) if size else None
        if inputs is None:
            return 0
        self._run_known(waiting[:size], inputs, started_ns)
        del waiting[:size]
        return size

    def _run_known(self, batch: Sequence[WaitingRequest], inputs: Arrays, started_ns: int) -> None:
        known = batch[0][2]
        sizes, rows = [known.rows] * len(batch), known.rows * len(batch)
        results, times = self._run(inputs, sizes, [request[1][1] for request in batch], known.wanted, started_ns)
        columns = None if isinstance(results, list) else _known_columns(results, known, rows)
        if columns is None:
            self._reply([self._known.ordinary(request) for request in batch], results, sizes, times, started_ns)
        else:
            words, output_ns = known.reply, time.monotonic_ns() - times.done_ns
            rest = times.input_ns, times.infer_ns, output_ns, times.batch, times.rows
            last_link: object = None
            unsent: list[PlainReply] = []
            for (link, record, _, arrived_ns), outputs in zip(batch, zip(*columns, strict=True), strict=True):
                if link is not last_link:
                    unsent, last_link = self._outbox.unsent(link), link
                unsent.append([RESULT, record[1], words, started_ns - arrived_ns, *rest, *outputs])
        self._page.batch_executed(len(batch))

    def _run(
        self, inputs: Arrays, sizes: Sequence[int], numbers: Sequence[int], wanted: Sequence[str], started_ns: int
    ) -> tuple[Arrays | list[Result], RunTimes]:
        """The stacked outputs, or a result for each request; and times without the one in the queue."""
        ready_ns = time.monotonic_ns()
        self._page.batch_started(numbers, ready_ns)
        results = self._executor.run_stacked(inputs, sizes, wanted)
        done_ns = time.monotonic_ns()
        rows = sum(sizes)
        self._policy.on_run(rows, done_ns - started_ns)
        return results, RunTimes(0, ready_ns - started_ns, done_ns - ready_ns, done_ns, len(sizes), rows)

    def _reply(
        self,
        batch: Sequence[WorkerRequest],
        results: Arrays | list[Result],
        sizes: Sequence[int],
        times: RunTimes,
        started_ns: int,
    ) -> None:
        parts = None if isinstance(results, list) else self._replies.signatures.inline_parts(results, sizes)
        if parts is None or isinstance(results, list):
            each_result = results if isinstance(results, list) else split(results, sizes)
            for request, result in zip(batch, each_result, strict=True):
                self._replies.reply(request, result, replace(times, queue_ns=started_ns - request.arrived_ns))
            return
        rest = times.input_ns, times.infer_ns, time.monotonic_ns() - times.done_ns, times.batch, times.rows
        for request, (signature, data) in zip(batch, parts, strict=True):
            reply = [RESULT, request.message.id, signature, started_ns - request.arrived_ns, *rest, *data]
            self._outbox.unsent(request.link).append(reply)
        self._known.learn(batch[0], {name: array[: sizes[0]] for name, array in results.items()}, parts[0][0])


def gathered(batch: Sequence[WorkerRequest]) -> Arrays | None:
    """The inputs of requests that share a batch key, stacked; None if one is not whole in its message, has elements of
    any length, or was granted a buffer for its outputs. Pure."""
    first = batch[0].signature
    messages = [request.message for request in batch]
    if any(message.output_buffer is not None or type(message) is not Infer for message in messages):
        return None
    rows = sum([request.signature.rows for request in batch])
    inputs: Arrays = {}
    for place, declared in enumerate(first.inputs):
        parts = [message.locations[place] for message in messages]
        if declared.dtype is None or not _ALL_INLINE.issuperset(map(type, parts)):
            return None
        if [*map(len, parts)] != [request.signature.inputs[place].size_bytes for request in batch]:
            return None
        try:
            data = b"".join(parts)  # type: ignore[arg-type] # all are bytes
        except MemoryError:
            return None
        inputs[declared.name] = np.ndarray((rows, *declared.shape[1:]), declared.dtype, data)
    return inputs


def known_batch_size(waiting: Sequence[WaitingRequest], now_ns: int, rule: BatchRule) -> int:
    """How many of the first requests, all of one signature, run now as one batch; 0 if that is not plain. Pure."""
    known = waiting[0][2]
    if known.signature.batch_key is None or any(
        known is not request[2] for request in waiting[: MAX_BATCH_REQUESTS + 1]
    ):
        return 0
    size = batch_of_alike(len(waiting), known.rows, rule)
    return size if size > 1 and min([request[1][DEADLINE] for request in waiting[:size]]) > now_ns else 0


def _known_inputs(batch: Sequence[WaitingRequest]) -> Arrays | None:
    """The stacked inputs; None if there is no memory for them."""
    known, inputs = batch[0][2], Arrays()
    for name, shape, dtype, place in known.inputs:
        try:
            data = b"".join([request[1][place] for request in batch])
        except MemoryError:
            return None
        inputs[name] = np.ndarray((known.rows * len(batch), *shape[1:]), dtype, data)
    return inputs


def _known_columns(made: Arrays, known: KnownSignature, rows: int) -> list[list[bytes]] | None:
    """The bytes of each output for each request, if they are as in the last reply; else None. Pure."""
    if not 0 < len(made) == len(known.outputs):
        return None
    columns: list[list[bytes]] = []
    for (name, array), (expected, dtype, shape) in zip(made.items(), known.outputs, strict=True):
        if array.dtype is not dtype or array.shape != (rows, *shape[1:]) or name != expected:
            return None
        columns.append(slices(array.tobytes(), array.nbytes // rows, [known.rows] * (rows // known.rows)))
    return columns
