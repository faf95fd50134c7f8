"""Every request that is here, from its arrival to its one reply: waiting, running, or kept until there is room.

Covers: the queue, reading inputs, wording what went wrong on the way, results and their grants.
Does not cover: sockets (loop.py), which requests run together (batch.py), running them (execute.py).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial

from mmsup.ipc.array import Array, as_array
from mmsup.ipc.codec import Record
from mmsup.ipc.messages import Drop, Grant, Infer, Reply, Tensor
from mmsup.ipc.page import PageWriter
from mmsup.worker.batch import Work, take
from mmsup.worker.execute import Execution
from mmsup.worker.failure import Failure
from mmsup.worker.gather import Arrays
from mmsup.worker.guard import guarded
from mmsup.worker.kept import Kept, Result
from mmsup.worker.links import Link, Links
from mmsup.worker.outbox import Outbox
from mmsup.worker.results import outputs_of, place, room


class Desk:
    """Used by the loop alone."""

    def __init__(self, execution: Execution, page: PageWriter, links: Links, outbox: Outbox) -> None:
        self.waiting: OrderedDict[tuple[bytes, int], Work] = OrderedDict()
        self.kept = Kept()
        self._execution = execution
        self._page = page
        self._links = links
        self._outbox = outbox
        self._model = execution.spec.name
        self._batch_limit = execution.metadata.max_batch_size

    # In.

    def take_in(self, link: Link, record: Record, now_ns: int) -> bool:
        """What a gateway says; False if it is nothing that a gateway may say."""
        if isinstance(record, Infer):
            work = Work(link.identity, link.place, record, now_ns)
            if work.key in self.waiting:
                return False
            self.waiting[work.key] = work
        elif isinstance(record, Grant):
            self._grant(link, record)
        elif isinstance(record, Drop):
            self._drop(link, record)
        else:
            return False
        return True

    def _drop(self, link: Link, drop: Drop) -> None:
        key = (link.identity, drop.id)
        if self.waiting.pop(key, None) is not None or self.kept.pop(key) is not None:
            self._outbox.put(link.identity, Reply(drop.id, "cancelled", "the request was cancelled"))

    def _grant(self, link: Link, grant: Grant) -> None:
        result = self.kept.pop((link.identity, grant.id))
        if result is not None:  # else it had expired, and its reply is on the way
            self._settle(result, grant)

    def forget(self, identity: bytes) -> None:
        """A gateway is gone, and nobody waits for what it asked."""
        for key in [each for each in self.waiting if each[0] == identity]:
            del self.waiting[key]
        self.kept.drop(identity)
        self._outbox.drop(identity)

    def expire(self, now_ns: int) -> None:
        """Answer for results that were kept past their deadline."""
        for work in self.kept.expire(now_ns):
            text = f"Request timeout expired: the result of model '{self._model}' had to wait for room"
            self._fail(work, Failure("deadline_exceeded", text))

    # Running.

    def serve(self) -> int:
        """Run the head of the queue; how many requests ran."""
        now = time.monotonic_ns()
        taken = take(self.waiting.values(), now, self._batch_limit)
        for work in taken.expired:
            del self.waiting[work.key]
            text = f"Request timeout expired in the queue of model '{self._model}'"
            self._fail(work, Failure("deadline_exceeded", text), queue_ns=now - work.arrived_ns)
        if taken.batch:
            self._run(taken.batch, now)
        return len(taken.batch)

    def _run(self, batch: list[Work], started_ns: int) -> None:
        jobs: list[Arrays] = []
        runs: list[Work] = []
        for work in batch:
            del self.waiting[work.key]
            job = guarded(partial(self._job, work), self._execution.spec)
            if isinstance(job, Failure):
                self._fail(work, job)
                continue
            jobs.append(job)
            runs.append(work)
            self._page.begin(work.place, work.request.id)
        if not jobs:
            return
        ready = time.monotonic_ns()
        outcomes = self._execution.run(jobs, batch[0].request.outputs)
        done = time.monotonic_ns()
        self._page.executed(len(runs))
        for work, outcome in zip(runs, outcomes, strict=True):
            times = (started_ns - work.arrived_ns, ready - started_ns, done - ready)
            self._finish(work, outcome, times, len(runs))

    def _job(self, work: Work) -> Arrays | Failure:
        job: Arrays = {}
        for tensor in work.request.inputs:
            array = self._array(work, tensor)
            if array is None:
                return Failure("internal", f"input '{tensor.name}' did not reach model '{self._model}' whole")
            job[tensor.name] = array
        return job

    def _array(self, work: Work, tensor: Tensor) -> Array | None:
        """A view of an input; None if the gateway named what is not there, which is a bug of ours."""
        data: bytes | memoryview | None = tensor.data
        if tensor.segment >= 0:
            link = self._links.get(work.identity)
            data = link.view(tensor.segment, tensor.offset, tensor.size, writable=False) if link else None
        if data is None:
            return None
        try:
            return as_array(data, tensor.datatype, tensor.shape)
        except (ValueError, KeyError, OverflowError):
            return None

    # Out.

    def _finish(self, work: Work, outcome: Arrays | Failure, times: tuple[int, int, int], batch: int) -> None:
        began = time.monotonic_ns()
        if not isinstance(outcome, Failure):
            arrays = outcome
            outputs = guarded(lambda: outputs_of(arrays), self._execution.spec)
        else:
            outputs = outcome
        queue_ns, input_ns, infer_ns = times
        if isinstance(outputs, Failure):
            reply = Reply(work.request.id, outputs.code, outputs.text, (), 0, queue_ns, input_ns, infer_ns, 0, batch)
            self._outbox.put(work.identity, reply)
            return
        request = work.request
        grant = Grant(request.id, request.grant_segment, request.grant_offset, request.grant_size)
        result = Result(work, outputs, queue_ns, input_ns, infer_ns, began, batch)
        self._settle(result, grant)

    def _settle(self, result: Result, grant: Grant) -> None:
        """Reply with the outputs, or ask for the room that they need."""
        need = room(result.outputs)
        view: memoryview | None = None
        if need:
            if grant.segment < 0 or grant.size < need:
                self._keep(result, need)
                return
            link = self._links.get(result.work.identity)
            view = link.view(grant.segment, grant.offset, need, writable=True) if link else None
            if view is None:
                self._fail(
                    result.work, Failure("internal", f"the room for the outputs of '{self._model}' is not there")
                )
                return
        tensors = place(result.outputs, view, grant.segment, grant.offset)
        self._outbox.put(result.work.identity, result.reply(tensors, 0))

    def _keep(self, result: Result, need: int) -> None:
        if self.kept.keep(result):
            self._outbox.put(result.work.identity, result.reply((), need))
            return
        text = f"too many results of model '{self._model}' wait for room"
        self._fail(result.work, Failure("no_buffer", text))

    def _fail(self, work: Work, failure: Failure, queue_ns: int = 0) -> None:
        self._outbox.put(work.identity, Reply(work.request.id, failure.code, failure.text, queue_ns=queue_ns))
