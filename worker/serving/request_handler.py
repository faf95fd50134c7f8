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

from mmsup.ipc.memory.status_page import PageWriter
from mmsup.ipc.messages.data import Drop, Grant, Infer, Place, Reply
from mmsup.ipc.tensors.numpy_arrays import Array, as_array
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batch_policy import Pace
from mmsup.worker.batching.batcher import RUN_REQUESTS, Taken, Work, take
from mmsup.worker.batching.priority_queue import Waiting
from mmsup.worker.batching.request_signature import Input, Kinds
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_ROOM, Room
from mmsup.worker.execution.executor import Execution
from mmsup.worker.execution.model_errors import Failure, failure_of
from mmsup.worker.execution.model_errors_guard import guarded
from mmsup.worker.execution.outputs import Outlines, Output, place, room
from mmsup.worker.serving.gateway_links import Link
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import Kept, Result, Times

NO_TIMES: Final = Times(0, 0, 0, 0, 1)


class Desk:
    """Used by the loop alone."""

    def __init__(self, execution: Execution, page: PageWriter, outbox: Outbox) -> None:
        self.waiting = Waiting(execution.spec)
        self.pace = Pace(execution.spec, execution.metadata.max_batch_size)
        self.kept = Kept()
        self._kinds = Kinds()
        self._outlines = Outlines({each.name: each.datatype for each in execution.metadata.outputs})
        self._execution = execution
        self._page = page
        self._outbox = outbox
        self._model = execution.spec.name
        self._is_waited_for = False

    # In.

    def take_in(self, link: Link, record: Any, now_ns: int) -> bool:  # a record of any kind
        """What a gateway says; False if it is nothing that a gateway may say."""
        if isinstance(record, Infer):
            return self._admit(link, record, now_ns)
        if isinstance(record, Grant):
            self._grant(link, record)
        elif isinstance(record, Drop):
            self._drop(link, record)
        else:
            return False
        return True

    def _admit(self, link: Link, request: Infer, now_ns: int) -> bool:
        try:
            kind = self._kinds.of(request.words)
        except WireError:
            return False
        waiting = self.waiting
        work = Work(
            link, request, kind, now_ns, waiting.level_of(kind.priority) if kind.priority else waiting.own_level
        )
        if waiting.has(work) or len(request.places) != len(kind.inputs):
            return False
        if not waiting.add(work):
            text = f"Exceeds maximum queue size: model '{self._model}' takes no more of priority {work.level} now"
            self._fail(work, Failure("queue_full", text))
        return True

    def _drop(self, link: Link, drop: Drop) -> None:
        if self.waiting.drop(link, drop.id) is not None or self.kept.pop((link, drop.id)) is not None:
            self._outbox.put(link, Reply(drop.id, "cancelled", "the request was cancelled"))

    def _grant(self, link: Link, grant: Grant) -> None:
        result = self.kept.pop((link, grant.id))
        if result is not None:  # else it had expired, and its reply is on the way
            self._settle(result.work, result.outputs, result.times, (grant.segment, grant.offset, grant.size))

    def forget(self, link: Link) -> None:
        """A link is over, and nobody waits for what it asked."""
        self.waiting.forget(link)
        self.kept.drop(link)
        self._outbox.drop(link)

    def expire(self, now_ns: int) -> None:
        """Answer for results that were kept past their deadline."""
        for work in self.kept.expire(now_ns):
            text = f"Request timeout expired: the result of model '{self._model}' had to wait for room"
            self._fail(work, Failure("deadline_exceeded", text))

    # Running.

    def serve(self, now: int) -> Taken:
        """Run what is next, if its time has come; what that was, or until when it waits for company."""
        waiting, pace = self.waiting, self.pace
        if waiting.has_timeouts:
            for work in waiting.late(now):
                self._expire(work, now)
        rule = pace.rule()
        taken = take(waiting.in_order(now), now, rule)
        for work in taken.expired:
            waiting.remove(work)
            self._expire(work, now)
        if taken.batch:
            if self._is_waited_for and len(taken.batch) < rule.expected:
                pace.waited_in_vain()
            self._run(taken.batch, now)
        self._is_waited_for = taken.wait_until_ns > 0
        return taken

    def serve_alone(self, now: int) -> int:
        """Run all that waits, one by one, while that goes quickly; how many. For a model that makes no batches, as long
        as all requests are of one class: `serve` would come to the same, at twice the price."""
        line, pace, ran, began = self.waiting.line(), self.pace, 0, now
        while line and ran < RUN_REQUESTS and pace.is_quick(now - began):
            work = self.waiting.pop(line)
            if work.request.deadline_ns <= now:
                self._expire(work, now)
                continue
            self._run_alone(work, now)
            ran += 1
            now = time.monotonic_ns()
        return ran

    def _run_alone(self, work: Work, started_ns: int) -> None:
        job = self._job(work)
        if isinstance(job, Failure):
            self._fail(work, job)
            return
        if work.kind.alone:
            self.flush()
        page, execution = self._page, self._execution
        page.begin(work.request.id)
        room = self._rooms([work], [job])[0] if execution.uses_room else NO_ROOM
        ready = time.monotonic_ns()
        outcome = execution.run_once(job, work.kind.outputs, room)
        done = time.monotonic_ns()
        self.pace.ran(work.kind.rows, done - started_ns)
        small = None if isinstance(outcome, Failure) else self._outlines.inline(outcome)
        if small is None:
            self._finish(work, outcome, Times(started_ns - work.arrived_ns, ready - started_ns, done - ready, done, 1))
        else:
            words, places = small
            took = started_ns - work.arrived_ns, ready - started_ns, done - ready, time.monotonic_ns() - done, 1
            self._outbox.put(work.link, Reply(work.request.id, "", "", words, places, 0, *took))
        page.executed(1)
        if work.kind.alone:
            self.flush()

    def _expire(self, work: Work, now: int) -> None:
        text = f"Request timeout expired in the queue of model '{self._model}'"
        self._fail(work, Failure("deadline_exceeded", text), Times(now - work.arrived_ns, 0, 0, now, 1))

    def _run(self, batch: list[Work], started_ns: int) -> None:
        waiting, page = self.waiting, self._page
        for work in batch:
            waiting.remove(work)
        waiting.began(batch[0])
        is_alone = batch[0].kind.alone
        if is_alone:
            self.flush()
        jobs: list[Arrays] = []
        runs: list[Work] = []
        for work in batch:
            job = self._job(work)
            if isinstance(job, Failure):
                self._fail(work, job)
                continue
            jobs.append(job)
            runs.append(work)
            page.begin(work.request.id)
        count = len(runs)
        if not count:
            return
        wanted = batch[0].kind.outputs
        rooms = self._rooms(runs, jobs) if self._execution.uses_room else ()
        ready = time.monotonic_ns()
        outcomes = self._execution.run(jobs, wanted, rooms)
        done = time.monotonic_ns()
        self.pace.ran(runs[0].kind.rows if count == 1 else sum([work.kind.rows for work in runs]), done - started_ns)
        for work, outcome in zip(runs, outcomes, strict=True):
            self._finish(
                work, outcome, Times(started_ns - work.arrived_ns, ready - started_ns, done - ready, done, count)
            )
        page.executed(count)
        if is_alone:
            self.flush()

    def _rooms(self, runs: list[Work], jobs: list[Arrays]) -> list[Room]:
        """Where the outputs of each will lie, as far as memory was granted and anybody knows."""
        rooms: list[Room] = []
        for work, job in zip(runs, jobs, strict=True):
            grant = work.request.grant
            view = work.link.view(*grant, writable=True) if grant is not None else None
            rooms.append(self._execution.room(job, work.kind.outputs, view) if view is not None else NO_ROOM)
        return rooms

    def _job(self, work: Work) -> Arrays | Failure:
        """The inputs of a request, as views where they lie well."""
        job: Arrays = {}
        for each, where in zip(work.kind.inputs, work.request.places, strict=True):
            try:
                if type(where) is bytes and each.dtype is not None and len(where) == each.size:
                    job[each.name] = np.ndarray(each.shape, each.dtype, where)
                else:
                    job[each.name] = self._input(work.link, each, where)
            except (ValueError, LookupError, OverflowError):  # what the gateway says, it has checked: a bug of ours
                return Failure("internal", f"input '{each.name}' did not reach model '{self._model}' whole")
            except MemoryError as error:
                return failure_of(error, self._execution.spec)
        return job

    @staticmethod
    def _input(link: Link, given: Input, where: Place) -> Array:
        data = link.view(*where, writable=False) if isinstance(where, tuple) else where
        if data is None:
            raise ValueError("it lies in memory that was not shared")
        return as_array(data, given.datatype, given.shape)

    # Out.

    def flush(self) -> None:
        """Send what is to be said; a link that is over is forgotten."""
        for link in self._outbox.flush():
            self.forget(link)

    def _finish(self, work: Work, outcome: Arrays | Failure, times: Times) -> None:
        if isinstance(outcome, Failure):
            self._fail(work, outcome, times)
            return
        small = self._outlines.inline(outcome)
        if small is not None:
            self._answer(work, *small, times)
            return
        outputs = self._execution.outputs(outcome)
        if isinstance(outputs, Failure):
            self._fail(work, outputs, times)
        else:
            self._settle(work, outputs, times, work.request.grant)

    def _settle(
        self, work: Work, outputs: tuple[Output, ...], times: Times, grant: tuple[int, int, int] | None
    ) -> None:
        """Reply with the outputs, or ask for the room that they need. `grant` is segment, offset and size."""
        need = room(outputs)
        if not need:
            self._answer(work, self._outlines.words(outputs), place(outputs, None, -1, 0), times)
            return
        if grant is None or grant[2] < need:
            self._keep(Result(work, outputs, times), need)
            return
        segment, offset, _ = grant
        view = work.link.view(segment, offset, need, writable=True)
        if view is None:
            self._fail(work, Failure("internal", f"the room for the outputs of model '{self._model}' is not there"))
            return
        self._answer(work, self._outlines.words(outputs), place(outputs, view, segment, offset), times)

    def _keep(self, result: Result, need: int) -> None:
        kept = guarded(partial(self.kept.keep, result), self._execution.spec)  # the copy may not fit under the cap
        work, times = result.work, result.times
        if kept is True:
            took = self._took(times)
            self._outbox.put(work.link, Reply(work.request.id, "", "", b"", (), need, *took))
            return
        text = f"too many results of model '{self._model}' wait for room"
        self._fail(work, kept if isinstance(kept, Failure) else Failure("no_buffer", text))

    def _answer(self, work: Work, words: bytes, places: tuple[Place, ...], times: Times) -> None:
        self._outbox.put(work.link, Reply(work.request.id, "", "", words, places, 0, *self._took(times)))

    @staticmethod
    def _took(times: Times) -> tuple[int, int, int, int, int]:
        output_ns = time.monotonic_ns() - times.done_ns
        return times.queue_ns, times.input_ns, times.infer_ns, output_ns, times.batch

    def _fail(self, work: Work, failure: Failure, times: Times = NO_TIMES) -> None:
        if failure.code == "gpu_oom":
            self._page.refused()
        took = (times.queue_ns, times.input_ns, times.infer_ns, 0, times.batch)
        self._outbox.put(work.link, Reply(work.request.id, failure.code, failure.text, b"", (), 0, *took))
