"""Every request that is here, from its arrival to its one reply: waiting, running, or kept until there is room.

Covers: reading inputs, wording what went wrong on the way, results and their grants.
Does not cover: sockets (loop.py), who is next (waiting.py), which requests run together and when (batch.py), running
them (execute.py).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from mmsup.ipc.array import as_array
from mmsup.ipc.codec import Record
from mmsup.ipc.messages import Drop, Grant, Infer, Reply, Tensor
from mmsup.ipc.page import PageWriter
from mmsup.worker.batch import Taken, Work, take
from mmsup.worker.execute import Execution
from mmsup.worker.failure import Failure, failure_of
from mmsup.worker.gather import Arrays
from mmsup.worker.guard import guarded
from mmsup.worker.kept import Kept, Result, Times
from mmsup.worker.links import Link, Links
from mmsup.worker.outbox import Outbox
from mmsup.worker.pace import Pace
from mmsup.worker.results import Output, place, room
from mmsup.worker.waiting import Waiting

NO_TIMES: Final = Times(0, 0, 0, 0, 1)


class Desk:
    """Used by the loop alone."""

    def __init__(self, execution: Execution, page: PageWriter, links: Links, outbox: Outbox) -> None:
        self.waiting = Waiting(execution.spec)
        self.pace = Pace(execution.spec, execution.metadata.max_batch_size)
        self.kept = Kept()
        self._execution = execution
        self._page = page
        self._links = links
        self._outbox = outbox
        self._model = execution.spec.name
        self._is_waited_for = False

    # In.

    def take_in(self, link: Link, record: Record, now_ns: int) -> bool:
        """What a gateway says; False if it is nothing that a gateway may say."""
        if isinstance(record, Infer):
            work = Work(link.identity, record, now_ns, self.waiting.level_of(record.priority))
            if self.waiting.has(work):
                return False
            if not self.waiting.add(work):
                text = f"Exceeds maximum queue size: model '{self._model}' takes no more of priority {work.level} now"
                self._fail(work, Failure("queue_full", text))
        elif isinstance(record, Grant):
            self._grant(link, record)
        elif isinstance(record, Drop):
            self._drop(link, record)
        else:
            return False
        return True

    def _drop(self, link: Link, drop: Drop) -> None:
        key = (link.identity, drop.id)
        if self.waiting.drop(*key) is not None or self.kept.pop(key) is not None:
            self._outbox.put(link.identity, Reply(drop.id, "cancelled", "the request was cancelled"))

    def _grant(self, link: Link, grant: Grant) -> None:
        result = self.kept.pop((link.identity, grant.id))
        if result is not None:  # else it had expired, and its reply is on the way
            room_for_it = (grant.segment, grant.offset, grant.size)
            self._settle(result.work, result.outputs, result.times, room_for_it)

    def forget(self, identity: bytes) -> None:
        """A gateway is gone, and nobody waits for what it asked."""
        self.waiting.forget(identity)
        self.kept.drop(identity)
        self._outbox.drop(identity)

    def expire(self, now_ns: int) -> None:
        """Answer for results that were kept past their deadline."""
        for work in self.kept.expire(now_ns):
            text = f"Request timeout expired: the result of model '{self._model}' had to wait for room"
            self._fail(work, Failure("deadline_exceeded", text))

    # Running.

    def serve(self, now: int) -> Taken:
        """Run what is next, if its time has come; what that was, or until when it waits for company."""
        for work in self.waiting.late(now):
            self._expire(work, now)
        rule = self.pace.rule()
        taken = take(self.waiting.in_order(now), now, rule)
        for work in taken.expired:
            self.waiting.remove(work)
            self._expire(work, now)
        if taken.batch:
            if self._is_waited_for and len(taken.batch) < rule.expected:
                self.pace.waited_in_vain()
            self._run(taken.batch, now)
        self._is_waited_for = taken.wait_until_ns > 0
        return taken

    def _expire(self, work: Work, now: int) -> None:
        text = f"Request timeout expired in the queue of model '{self._model}'"
        self._fail(work, Failure("deadline_exceeded", text), Times(now - work.arrived_ns, 0, 0, now, 1))

    def _run(self, batch: list[Work], started_ns: int) -> None:
        jobs: list[Arrays] = []
        runs: list[Work] = []
        for work in batch:
            self.waiting.remove(work)
        self.waiting.began(batch[0])
        for work in batch:
            job = self._job(work)
            if isinstance(job, Failure):
                self._fail(work, job)
                continue
            jobs.append(job)
            runs.append(work)
            self._page.begin(work.request.id)
        if not jobs:
            return
        ready = time.monotonic_ns()
        outcomes = self._execution.run(jobs, batch[0].request.outputs)
        done = time.monotonic_ns()
        self._page.executed(len(runs))
        self.pace.ran(sum([work.rows for work in runs]), done - started_ns)
        for work, outcome in zip(runs, outcomes, strict=True):
            times = Times(started_ns - work.arrived_ns, ready - started_ns, done - ready, done, len(runs))
            self._finish(work, outcome, times)

    def _job(self, work: Work) -> Arrays | Failure:
        """The inputs of a request, as views where they lie well."""
        job: Arrays = {}
        for tensor in work.request.inputs:
            data: bytes | memoryview | None = tensor.data
            if tensor.segment >= 0:
                link = self._links.get(work.identity)
                data = link.view(tensor.segment, tensor.offset, tensor.size, writable=False) if link else None
            try:
                if data is None:
                    raise ValueError("it lies in memory that was not shared")
                job[tensor.name] = as_array(data, tensor.datatype, tensor.shape)
            except (ValueError, LookupError, OverflowError):  # what the gateway says, it has checked: a bug of ours
                return Failure("internal", f"input '{tensor.name}' did not reach model '{self._model}' whole")
            except MemoryError as error:
                return failure_of(error, self._execution.spec)
        return job

    # Out.

    def _finish(self, work: Work, outcome: Arrays | Failure, times: Times) -> None:
        outputs = outcome if isinstance(outcome, Failure) else self._execution.outputs(outcome)
        if isinstance(outputs, Failure):
            self._fail(work, outputs, times)
            return
        request = work.request
        self._settle(work, outputs, times, (request.grant_segment, request.grant_offset, request.grant_size))

    def _settle(self, work: Work, outputs: tuple[Output, ...], times: Times, grant: tuple[int, int, int]) -> None:
        """Reply with the outputs, or ask for the room that they need. `grant` is segment, offset and size."""
        segment, offset, size = grant
        need = room(outputs)
        view: memoryview | None = None
        if need:
            if segment < 0 or size < need:
                self._keep(Result(work, outputs, times), need)
                return
            link = self._links.get(work.identity)
            view = link.view(segment, offset, need, writable=True) if link else None
            if view is None:
                text = f"the room for the outputs of model '{self._model}' is not there"
                self._fail(work, Failure("internal", text))
                return
        self._reply(work, place(outputs, view, segment, offset), 0, times)

    def _keep(self, result: Result, need: int) -> None:
        kept = guarded(partial(self.kept.keep, result), self._execution.spec)  # the copy may not fit under the cap
        if kept is True:
            self._reply(result.work, (), need, result.times)
            return
        text = f"too many results of model '{self._model}' wait for room"
        self._fail(result.work, kept if isinstance(kept, Failure) else Failure("no_buffer", text))

    def _reply(self, work: Work, tensors: tuple[Tensor, ...], need: int, times: Times) -> None:
        output_ns = time.monotonic_ns() - times.done_ns
        took = (times.queue_ns, times.input_ns, times.infer_ns, output_ns, times.batch)
        self._outbox.put(work.identity, Reply(work.request.id, "", "", tensors, need, *took))

    def _fail(self, work: Work, failure: Failure, times: Times = NO_TIMES) -> None:
        took = (times.queue_ns, times.input_ns, times.infer_ns, 0, times.batch)
        self._outbox.put(work.identity, Reply(work.request.id, failure.code, failure.text, (), 0, *took))
