"""Handles the requests of a model with sequences, in the place of RequestHandler: the loop is the same.

A failed run of several sequences is not repeated one by one, unless their states are tensors that the server keeps: a
model that holds state itself may have taken some of the requests already.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from mmsup.ipc.errors import SEQUENCE_ID_NEEDED, sequence_start_text
from mmsup.ipc.memory.status_page import SEQUENCES, StatusPageWriter
from mmsup.ipc.messages.data import Cancel, EndSequence, Infer, InferReply
from mmsup.ipc.specs import SequenceBatching
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.request_signature import RequestSignature
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.sequences import control_inputs
from mmsup.worker.sequences.live_sequence import Sequence as Live
from mmsup.worker.sequences.live_sequence import SequencedRequest, SequenceMemory
from mmsup.worker.sequences.sequence_batch import next_sequences, rule_of
from mmsup.worker.sequences.sequence_runner import SequenceRunner
from mmsup.worker.sequences.sequence_signature import SequenceSignatures, SequenceStep
from mmsup.worker.sequences.sequence_table import Refusal, SequenceTable
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.pending_results import RunTimes
from mmsup.worker.serving.request_handler import RequestHandler

DEFAULT_CANDIDATES: Final = 1024
"""Slots of `oldest` if the configuration gives no number."""
DRAIN_LIMIT_S: Final = 30.0
"""How long a worker that is to stop waits for its live sequences, or half of the model's `deadline` if that is less."""
Request = SequencedRequest[GatewayLink]


def slots_of(batching: SequenceBatching, max_batch_size: int) -> int:
    if batching.slots:
        return batching.slots
    return max(max_batch_size, 1) if batching.strategy == "direct" else DEFAULT_CANDIDATES


class SequenceHandler(RequestHandler):
    def __init__(
        self,
        executor: Executor,
        page: StatusPageWriter,
        outbox: Outbox,
        *,
        use_known_requests: bool = False,  # noqa: ARG002 - as the base has it
    ) -> None:
        """No request of a sequence is a known one, whatever `use_known_requests` says."""
        super().__init__(executor, page, outbox, use_known_requests=False)
        assert executor.spec.sequences is not None, "this model has no sequences"
        self._batching = batching = executor.spec.sequences
        slots = slots_of(batching, executor.metadata.max_batch_size)
        self.table: SequenceTable[GatewayLink] = SequenceTable(slots, round(batching.idle_s * 1e9))
        self._rule = rule_of(batching, executor.metadata.max_batch_size, slots)
        self._steps = SequenceSignatures()
        self._runner = SequenceRunner(executor, batching)
        self._drain_until_ns = 0
        """Until when a worker that is to stop waits for its sequences; 0 before that."""

    # Messages of a gateway.

    def _on_messages(self, link: GatewayLink, messages: Iterable[Any], now_ns: int) -> list[str]:
        rejected: list[str] = []
        for message in messages:
            if isinstance(message, EndSequence):
                self._refuse_all(self.table.forget(message.text or message.number))
            else:
                rejected += super()._on_messages(link, (message,), now_ns)
        self._count()
        return rejected

    def _on_infer(self, link: GatewayLink, message: Infer, now_ns: int) -> bool:
        try:
            signature, step = self._steps.get(message.signature)
        except WireError:
            return False
        request = SequencedRequest(link, message, signature, step, now_ns)
        if len(message.locations) != len(signature.inputs) or self.table.has(request):
            return False
        problem = self._problem(signature, step)
        if problem:
            self.replies.reply_failure(request, ModelFailure("bad_request", problem))
            return True
        self.table.end_idle(now_ns)
        refusal = self.table.submit(request)
        if refusal is Refusal.UNKNOWN:
            self._refuse_all([request])
        elif refusal is Refusal.FULL:
            text = (
                f"Exceeds maximum queue size: each slot for a sequence of model '{self._executor.spec.name}' is taken"
            )
            self.replies.reply_failure(request, ModelFailure("queue_full", text))
        return True

    def _problem(self, signature: RequestSignature, step: SequenceStep) -> str:
        """What is wrong with a request, whatever the state of its sequence."""
        model = self._executor.spec.name
        if step.id in (0, ""):
            return SEQUENCE_ID_NEEDED.format(model=model)
        if self._has_batch_axis and signature.rows != 1:
            text = f"inference request to model '{model}' must specify batch-size 1"
            return f"{text} due to requirements of sequence batcher"
        problem = control_inputs.id_problem(self._batching.controls, step.id)
        return f"sequence_id {step.id} of a request to model '{model}' {problem}" if problem else ""

    def _refuse_all(self, requests: Sequence[Request]) -> None:
        """Answer requests whose sequence is not live."""
        for request in requests:
            number = request.step.id
            text = sequence_start_text(number, self._executor.spec.name)
            if self.table.was_idle(number):
                text += f": it had no request for {self._batching.idle_s:g} s, and is over"
            self.replies.reply_failure(request, ModelFailure("sequence_unknown", text))

    def _on_cancel(self, link: GatewayLink, cancel: Cancel) -> None:
        gone = self.table.cancel(link, cancel.id)
        if gone or self.replies.pending.pop((link, cancel.id)) is not None:
            self._outbox.add(link, InferReply(cancel.id, "cancelled", "the request was cancelled"))
        self._refuse_all(gone[1:])

    def drop_link(self, link: GatewayLink) -> None:
        super().drop_link(link)
        self._refuse_all(self.table.drop_link(link))
        self._count()

    # The loop.

    def run_singly(self, now_ns: int) -> int:  # noqa: ARG002 - as the base has it
        """None: each request runs as part of a batch."""
        return 0

    def run_next_batch(self, now_ns: int) -> tuple[int, int]:
        for request, is_late in self.table.pop_late(now_ns):
            if is_late:
                self.replies.reply_expired(request, now_ns)
            else:
                self._refuse_all([request])
        self.table.end_idle(now_ns)
        chosen, until_ns = next_sequences(self.table, now_ns, self._rule)
        if chosen:
            self._run(chosen, now_ns)
        self._count()
        return len(chosen), until_ns

    def flush(self) -> None:
        """As the base has it. The loop calls it while nothing runs, too."""
        if self.table.end_idle(time.monotonic_ns()):
            self._count()
        super().flush()

    def is_drained(self, now_ns: int) -> bool:
        """Whether no live sequence is waited for any more."""
        if not self._drain_until_ns:
            self._drain_until_ns = now_ns + round(min(self._executor.spec.deadline_s / 2, DRAIN_LIMIT_S) * 1e9)
        return not self.table.live or now_ns >= self._drain_until_ns

    def _count(self) -> None:
        self.queue.size = self.table.size  # the loop asks the queue whether something waits
        self._page.words[SEQUENCES] = len(self.table.live)

    # Runs.

    def _run(self, chosen: Sequence[Live[GatewayLink]], started_ns: int) -> None:
        rows: list[tuple[Live[GatewayLink], Request]] = []
        inputs: list[Arrays] = []
        for sequence in chosen:
            request = self.table.take(sequence)
            found = self._inputs(request)
            if isinstance(found, ModelFailure):
                self.replies.reply_failure(request, found)
                self._finish(sequence, request, has_failed=True)
            else:
                rows.append((sequence, request))
                inputs.append(found)
        if not rows:
            return
        if rows[0][1].signature.runs_alone:
            self.flush()
        ready_ns = time.monotonic_ns()
        self._page.batch_started([request.message.id for _, request in rows], ready_ns)
        steps = [(sequence.slot, request.step, _memory(sequence, request)) for sequence, request in rows]
        results = self._runner.run(steps, inputs, rows[0][1].signature.outputs)
        done_ns, count = time.monotonic_ns(), len(rows)
        self.policy.on_run(count, done_ns - started_ns)
        size = count if self._has_batch_axis else 1
        for (sequence, request), result in zip(rows, results, strict=True):
            times = RunTimes(
                started_ns - request.arrived_ns, ready_ns - started_ns, done_ns - ready_ns, done_ns, count, size
            )
            self.replies.reply(request, result, times)
            self._finish(sequence, request, has_failed=isinstance(result, ModelFailure))
        self._page.batch_executed(count)
        if rows[0][1].signature.runs_alone:
            self.flush()

    def _finish(self, sequence: Live[GatewayLink], request: Request, *, has_failed: bool) -> None:
        self._refuse_all(self.table.finish(sequence, request, time.monotonic_ns(), has_failed=has_failed))


def _memory(sequence: Live[GatewayLink], request: Request) -> SequenceMemory:
    if request.step.is_start:
        sequence.memory = SequenceMemory()
    return sequence.memory
