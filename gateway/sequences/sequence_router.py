"""Sends the requests of a sequence to the worker that has its state, whichever gateway they come through.

A gateway remembers where it has sent the last request of a sequence. One that does not know (it is new, or the client
has come through another one before) asks the workers one after the other: a worker that has not the sequence refuses
the request and changes nothing. At most one worker has it, since before a START is sent, all others are told to forget
it. A START goes to the first worker with a free slot, in the order of placement.py, and waits at the first of all if
there is none.

If no worker has it, its client is told: that the state is lost, where its worker is known to have ended; else that the
sequence has to be started. It never goes on with another state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.gateway.protocol.sequences.sequence_parameters import SequenceFlags, SequenceId
from mmsup.gateway.sequences.placement import Places, ordered
from mmsup.gateway.sequences.sequence_turns import SequenceTurns, Turn
from mmsup.ipc.errors import CallerError, MmsupError, WorkerError, make_error, sequence_start_text
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import EndSequence
from mmsup.ipc.specs import SequenceBatching

LOST_WINDOW_S: Final = 60.0
"""Beyond the idle time of its sequences, how long the end of a worker explains a sequence that nobody has."""
_STATE_LOSING: Final = frozenset(
    {"worker_crashed", "worker_oom", "worker_sigbus", "worker_hung", "bad_worker_reply", "gpu_fault"}
)
Key = tuple[str, str, SequenceId]
"""Model, requested version, sequence."""


class SequenceRouter:
    """One per gateway process."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.turns = SequenceTurns()
        self.places = Places()

    def keeps(self, link: WorkerLink) -> bool:
        """Whether a link that gets no new sequences is kept for those that are live at its worker."""
        if link.spec.sequences is None or link.closed or self._router.status.draining:
            return False
        return link.process.live_sequences() > 0 and link.spec.name in self._router.routes.defaults

    @contextmanager
    def turn(self, model: str, version: str, flags: SequenceFlags | None) -> Iterator[Turn | None]:
        """The turn of a request in its sequence, if it has one, taken when it has come; for `infer`."""
        turn = self.turns.enter((model, version, flags.id)) if flags is not None else None
        try:
            yield turn
        finally:
            if turn is not None:
                turn.leave()

    async def infer(
        self, request: DispatchedRequest, job: InferenceJob, flags: SequenceFlags, turn: Turn | None = None
    ) -> InferenceResult:
        """The result, or the MmsupError that says whose fault it was."""
        version = request.requested_version
        turn = turn or self.turns.enter((request.spec.name, version, flags.id))
        try:
            await turn.wait(request.deadline_ns, request.spec.name)
            step = _Step(self._router, self.places, request, job, (request.spec.name, version, flags.id), flags)
            return await (step.start() if flags.is_start else step.proceed())
        finally:
            turn.leave()


class _Step:
    """One request of a sequence whose turn it is."""

    def __init__(
        self,
        router: Router,
        places: Places,
        request: DispatchedRequest,
        job: InferenceJob,
        key: Key,
        flags: SequenceFlags,
    ) -> None:
        self._router = router
        self._places = places
        self._request = request
        self._job = job
        self._key = key
        self._flags = flags
        self._metadata = request.metadata
        self._body: bytes | None = None
        """A copy of what lies in shared memory, where more than one worker may be asked."""

    async def start(self) -> InferenceResult:
        request = self._request
        serving = list(self._router.links.serving.get((request.spec.name, request.spec.version), ()))
        links = self._known_first(ordered(serving, self._key[0], self._flags.id)) or [request.link]
        self._keep_body(links)
        for link in links if len(links) > 1 else ():
            try:
                return await self._send_start(link, may_wait=False)
            except MmsupError as error:
                if error.code != "queue_full":
                    raise
        return await self._send_start(links[0], may_wait=True)

    async def proceed(self) -> InferenceResult:
        found = ordered(self._router.links.of_model(self._key[0]), self._key[0], self._flags.id)
        if self._key[1]:
            found = [each for each in found if each.spec.version == self._request.spec.version]
        links = self._known_first([each for each in found if each.metadata == self._metadata])
        self._keep_body(links)
        refusals: list[MmsupError] = []
        for link in links:
            try:
                result = await self._send(link, self._flags.parameters())
            except MmsupError as error:
                if error.code != "sequence_unknown":
                    raise self._explained(error) from None
                refusals.append(error)
            else:
                self._note_success()
                return result
        raise await self._refusal(refusals)

    def _known_first(self, links: list[WorkerLink]) -> list[WorkerLink]:
        known = self._places.get(self._key)
        return sorted(links, key=lambda each: each.worker_id != known)

    def _keep_body(self, links: list[WorkerLink]) -> None:
        buffer = self._request.buffer
        if isinstance(buffer, Slot) and links != [self._request.link]:
            self._body = bytes(buffer.view)

    async def _send_start(self, link: WorkerLink, *, may_wait: bool) -> InferenceResult:
        number = self._flags.id
        end = EndSequence(0, number) if isinstance(number, str) else EndSequence(number, "")
        for other in self._router.links.of_model(self._key[0]):
            if other is not link:
                other.channel.send(end)
        self._places.put(self._key, link.worker_id)
        try:
            result = await self._send(link, self._flags.parameters(may_wait=may_wait))
        except MmsupError as error:
            raise self._explained(error) from None
        self._note_success()
        return result

    def _note_success(self) -> None:
        if self._flags.is_end:
            self._places.drop(self._key)
        else:
            self._places.put(self._key, self._request.link.worker_id)

    async def _send(self, link: WorkerLink, parameters: dict[str, object]) -> InferenceResult:
        request = self._request
        if request.link is not link or request.in_flight is not None:
            await self._move(link)
        merged = {**self._job.parameters, **parameters}
        return await request.resume(replace(self._job, parameters=merged, signature=b""))

    async def _move(self, link: WorkerLink) -> None:
        """Take the request to another worker, or to the same one again."""
        request, buffer = self._request, self._request.buffer
        if request.in_flight is None:
            request.link.reserved_requests -= 1
            if isinstance(buffer, Slot) and buffer.state is SlotState.FILLING:
                request.link.memory.requests.free(buffer)
        request.in_flight = None
        link.reserved_requests += 1
        request.link, request.spec, request.metadata = link, link.spec, link.metadata
        if self._body is not None:
            request.buffer = slot = await request.allocate_slot(len(self._body))
            slot.view[:] = self._body

    # What clients are told.

    def _explained(self, error: MmsupError) -> MmsupError:
        """The end of a worker takes the state of the sequence with it, so that the same request is no use again."""
        if error.code not in _STATE_LOSING:
            return error
        text = f"{error.text}; the state of sequence {self._flags.id} is lost with it: start the sequence again"
        retryable = error.retryable and self._flags.is_start
        return make_error(error.code, text, model=self._key[0], retry_after_s=error.retry_after_s, retryable=retryable)

    async def _refusal(self, refusals: list[MmsupError]) -> MmsupError:
        """No worker has the sequence."""
        (model, _, number), known = self._key, self._places.get(self._key)
        links = self._router.links
        if known is not None and (known not in links.by_worker or not self._is_alike(known)):
            may_be_over = _perhaps_over(self._places.silence_s(self._key), self._request.spec.sequences)
            return self._lost(await self._why_ended(known) + may_be_over)
        if known is None and (reason := await self._recent_end()):
            text = sequence_start_text(number, model)
            return self._lost(f"no worker of the model has it, and {reason}", f"{text}: ")
        if refusals:
            return max(refusals, key=lambda each: len(each.text))
        return CallerError("sequence_unknown", sequence_start_text(number, model), model=model)

    def _is_alike(self, worker_id: tuple[int, int]) -> bool:
        """Whether a worker takes requests like this one."""
        return self._router.links.by_worker[worker_id].metadata == self._metadata

    def _lost(self, reason: str, before: str = "") -> MmsupError:
        model, _, number = self._key
        text = f"{before}the state of sequence {number} of model '{model}' is lost: {reason}; start the sequence again"
        return WorkerError("sequence_lost", text, model=model)

    async def _why_ended(self, worker_id: tuple[int, int]) -> str:
        found = [each for each in self._router.links.ended if each.worker_id == worker_id]
        if not found or found[0].was_planned:
            return "its worker was stopped or replaced before the sequence had ended"
        return (await self._router.verdicts.wait(worker_id, self._key[0])).text

    async def _recent_end(self) -> str:
        """Why a worker of this model ended lately; empty if none did."""
        sequences = self._request.spec.sequences
        window_s = LOST_WINDOW_S + (sequences.idle_s if sequences is not None else 0.0)
        for each in reversed(self._router.links.ended):
            if each.model == self._key[0] and time.monotonic() - each.at_s <= window_s:
                return (
                    f"one has ended {time.monotonic() - each.at_s:.0f} s ago: {await self._why_ended(each.worker_id)}"
                )
        is_young = time.monotonic() - self._places.began_s <= window_s
        if is_young and any(each.worker_id[1] > 1 for each in self._router.links.of_model(self._key[0])):
            return "one has been started again"  # before this gateway knew of it
        return ""


def _perhaps_over(silence_s: float, sequences: SequenceBatching | None) -> str:
    """That a sequence may have been over before its worker ended, as the end of a sentence; empty if it was not."""
    if sequences is None or silence_s <= sequences.idle_s:
        return ""
    return f", or it was over: no request of it came here for {silence_s:.0f} s, and {sequences.idle_s:g} s end it"
