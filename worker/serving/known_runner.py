"""Runs known requests one by one, and writes their replies.

The effect is that of `RequestHandler.run_singly` on ordinary requests: the same entries in the status page, the same
replies in the same order. Whatever is not plain becomes an ordinary request here, and is answered as one: a deadline
that has passed, a failure, outputs that are not those of the last reply.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from mmsup.ipc.memory.status_page import (
    ACTIVITY,
    BATCHES,
    BUSY,
    HEARTBEAT,
    REQUESTS,
    RING,
    RING_INDEX,
    SINCE,
    STARTED,
    StatusPageWriter,
)
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import RESULT
from mmsup.worker.batching.batch_policy import BatchPolicy
from mmsup.worker.batching.batcher import MAX_BATCH_REQUESTS
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.executor import Executor, failure_of_run, only_wanted
from mmsup.worker.execution.model_errors import ModelFailure, failure_of
from mmsup.worker.serving.known_queue import DEADLINE, OUTPUT_NS, KnownQueue, WaitingRequest
from mmsup.worker.serving.outbox import Outbox, PlainReply
from mmsup.worker.serving.pending_results import RunTimes
from mmsup.worker.serving.reply_writer import ReplyWriter

NOTHING: Final[Mapping[str, Array]] = MappingProxyType({})
NO_ARRAY: Final = np.empty(0)


class KnownRunner:
    def __init__(
        self, requests: KnownQueue, executor: Executor, page: StatusPageWriter, replies: ReplyWriter, outbox: Outbox
    ) -> None:
        self._requests = requests
        self._executor = executor
        self._page = page
        self._replies = replies
        self._outbox = outbox

    def run(self, policy: BatchPolicy, now_ns: int) -> int:
        """Run what waits while runs are quick; returns the time at the end. One flat loop: each call would cost as
        much as several of its lines."""
        requests, executor, page, began_ns = self._requests, self._executor, self._page, now_ns
        words, outbox = page.words, self._outbox.replies
        clock, make_array, infer = time.monotonic_ns, np.ndarray, executor.engine.infer
        last_link: object = None
        unsent: list[PlainReply] = []
        ran, taken, executed = 0, 0, words[REQUESTS]
        for request in requests.waiting:
            link, record, known, arrived_ns = request
            taken += 1
            if record[DEADLINE] <= now_ns:
                self._replies.reply_expired(requests.ordinary(request), now_ns)
                continue
            inputs: Arrays = {}
            try:
                for name, shape, dtype, at in known.inputs:
                    inputs[name] = make_array(shape, dtype, record[at])
            except MemoryError as error:
                self._replies.reply_failure(requests.ordinary(request), failure_of(error, executor.spec))
                continue
            number, failed, ready_ns = record[1], None, clock()
            words[RING_INDEX + page.started % RING] = number
            page.started = words[STARTED] = page.started + 1
            words[SINCE] = words[HEARTBEAT] = ready_ns
            if not ran:
                words[ACTIVITY] = BUSY
            try:
                made = infer(inputs, known.names)
            except BaseException as error:  # noqa: BLE001 - a model may raise anything, asyncio's CancelledError too
                made, failed = NOTHING, executor.checked(failure_of_run(error, executor.spec), inputs, known.wanted)
            done_ns = clock()
            times_ns = now_ns - arrived_ns, ready_ns - now_ns, done_ns - ready_ns
            reply: PlainReply = [RESULT, number, known.reply, *times_ns, 0, 1, known.reported_rows]
            for (name, array), (expected, dtype, shape) in zip(made.items(), known.outputs, strict=False):
                if array.dtype is not dtype or array.shape != shape or name != expected:
                    break
                reply.append(array.tobytes())
            if len(reply) == known.reply_length:
                if link is not last_link:
                    unsent, last_link = outbox.setdefault(link, []), link
                unsent.append(reply)
            else:
                self._reply(request, made if failed is None else failed, inputs, (*times_ns, done_ns))
                made, array, failed = NOTHING, NO_ARRAY, None  # they may be large
            end_ns = clock()
            reply[OUTPUT_NS] = end_ns - done_ns
            ran += 1
            words[REQUESTS] = executed + ran
            has_time = policy.on_single_run(known.rows, done_ns - now_ns, end_ns - began_ns)
            now_ns = end_ns
            if not has_time or ran >= MAX_BATCH_REQUESTS:
                break
        words[BATCHES] += ran
        del requests.waiting[:taken]
        return now_ns

    def _reply(
        self,
        request: WaitingRequest,
        made: Mapping[str, Array] | ModelFailure,
        inputs: Arrays,
        times_ns: tuple[int, int, int, int],
    ) -> None:
        """Reply as to an ordinary request, and learn the reply if another like it may come. `times_ns`: the first ones
        of RunTimes."""
        ordinary, known = self._requests.ordinary(request), request[2]
        times = RunTimes(*times_ns, 1, known.reported_rows)
        if isinstance(made, ModelFailure):
            self._replies.reply_failure(ordinary, made, times)
            return
        result = self._executor.checked(only_wanted(made, known.names), inputs, known.wanted)
        if not isinstance(result, ModelFailure) and (inline := self._replies.signatures.inline_reply(result)):
            self._requests.learn(ordinary, result, inline[0])
        self._replies.reply(ordinary, result, times)
