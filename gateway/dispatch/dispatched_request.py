"""One client's request while it is with us: its bytes, its place at a worker, exactly one outcome.

Who calls: the HTTP handlers, as `async with await backend.open(...) as exchange`, and the front, which never waits:
each step has a form that waits (`space`, `infer`) and one that does what can be done at once or says that it cannot
(`try_space`, `try_infer`, `outcome`). `leave` frees what is ours and, if there is no outcome yet, tells the worker to
forget the request.

A request that had not begun to execute when its worker ended goes to the next one, from the same bytes, unseen by the
client; not more than a few times. One that had begun is answered with the verdict, or run once more where the model
allows it (never after an out-of-memory: it would kill the next one too). One that was in the run that ended is run
alone from then on, whoever sends it; if that ends a worker too, it is refused (docs/decisions/007-poison.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

from mmsup.gateway.dispatch.in_flight import InFlightRequest, RequestEvent, WorkerExited
from mmsup.gateway.dispatch.input_layout import copy_bytes, free_slots, locate_input
from mmsup.gateway.dispatch.poison_requests import OFF_LOOP_BYTES, refusal_error
from mmsup.gateway.dispatch.reply_validation import ValidatedSignature
from mmsup.gateway.dispatch.request_fingerprint import Tensor, fingerprint, received_tensors, total_bytes
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult, OutputTensor
from mmsup.gateway.protocol.output_sizes import used_bytes
from mmsup.ipc.errors import MmsupError, ServerError, WorkerError, make_error
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import Infer, InferReply, TensorLocation
from mmsup.ipc.poison_policy import RETRYABLE_CAUSES, PoisonEntry
from mmsup.ipc.specs import INLINE_LIMIT_BYTES

if TYPE_CHECKING:
    from mmsup.gateway.dispatch.router import Router

_EXECUTED_CODES: Final = frozenset({"", "inference_failed"})
"""Of a final reply: it ran, and the worker is there to say so."""
_EMPTY: Final = memoryview(b"")
LOST_WORKERS_LIMIT: Final = 3
"""What has been at so many workers when they ended is answered, whatever their pages say of it: a worker that wipes
its page would take every other one along."""
GRANTS_LIMIT: Final = 2
"""A worker that still asks after this many larger grants is not honest about its sizes."""


class DispatchedRequest:
    """One request. Made by `Backend.open` when a link was found."""

    __slots__ = (
        "_buffer",
        "_failure",
        "_fingerprint",
        "_in_flight",
        "_link",
        "_lost_workers",
        "_requested_version",
        "_router",
        "_runs_alone",
        "deadline_ns",
        "metadata",
        "model",
        "request_id",
        "reserved_bytes",
        "spec",
        "version",
    )

    def __init__(self, backend: Router, link: WorkerLink, version: str, deadline_ns: int) -> None:
        self._router = backend
        self._link = link
        link.reserved_requests += 1
        self._requested_version = version
        self._buffer: Slot | memoryview = _EMPTY
        self._in_flight: InFlightRequest | None = None
        self._failure: MmsupError | None = None
        """Why its run came to nothing, if one has."""
        self._fingerprint = b""
        """Taken only when its model has a list."""
        self._lost_workers = 0
        """Workers that ended while it was there."""
        self._runs_alone = False
        """It shares its run with nobody."""
        self.request_id = ""
        """The client's own id of it, if it gave one; for the record of a death."""
        self.reserved_bytes = 0
        """Counted against the model's `max_queue_bytes`."""
        self.deadline_ns = deadline_ns
        """CLOCK_MONOTONIC. The caller may bring it forward (a `timeout` in the request), never put it off."""
        self.spec = link.spec
        """How the model is configured."""
        self.metadata = link.metadata
        """Its inputs and outputs."""
        self.model = link.spec.name
        self.version = link.spec.version
        """The version that serves it."""

    async def __aenter__(self) -> DispatchedRequest:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing more is wanted of it, and no view of its memory is used any more. Once."""
        entry, space = self._in_flight, self._buffer
        if entry is None:
            self._link.reserved_requests -= 1
            if isinstance(space, Slot) and space.state is SlotState.FILLING:
                self._link.memory.requests.free(space)
        elif entry.message.id in self._link.in_flight.entries:
            self._link.abandon(entry)
        elif entry.output_slot is not None and entry.output_slot.state is SlotState.DRAINING:
            self._link.memory.results.free(entry.output_slot)
        # An error that was raised here knows its frames, and through us would keep the memory mapped.
        self._in_flight, self._buffer, self._failure = None, _EMPTY, None
        self._router.on_request_closed(self.model, self.reserved_bytes)

    # The bytes of the request.

    async def allocate(self, size: int) -> memoryview:
        """Where `size` bytes of the body go: memory shared with the worker, or our own if they are few. Once."""
        space = self.try_allocate(size)
        if space is None:
            self._buffer = await self._allocate_slot(size)
            space = self._buffer.view
        return space

    def reserve_bytes(self, size: int) -> None:
        """So many bytes of the body come to lie with us before there is `space` for them."""
        self._router.reserve_bytes(self, size)

    def try_allocate(self, size: int) -> memoryview | None:
        """The same, or None if memory must be waited for: leave the exchange then, or ask `space`."""
        if size <= INLINE_LIMIT_BYTES:  # the bound on their number bounds these bytes too
            self._buffer = memoryview(bytearray(size))
            return self._buffer
        if size > self.reserved_bytes:
            self._router.reserve_bytes(self, size - self.reserved_bytes)
        slot = self._link.memory.requests.allocate(size)
        if slot is None:
            return None
        self._buffer = slot
        return slot.view

    async def _allocate_slot(self, size: int) -> Slot:
        """A slot at the present link, or at the next one if this life ends meanwhile."""
        while True:
            link = self._link
            try:
                return await link.memory.allocate(link.memory.requests, size)
            except ServerError:
                if not link.closed:
                    raise
                await self._acquire_next_link()

    async def _acquire_next_link(self, priority: int = 0) -> None:
        self._link = link = await self._router.acquire(self.model, self._requested_version, self.deadline_ns, priority)
        link.reserved_requests += 1
        self.spec, self.metadata, self.version = link.spec, link.metadata, link.spec.version
        self._fingerprint = b""

    # The run.

    async def infer(self, run: InferenceJob) -> InferenceResult:
        """Run the model; the outcome, or the MmsupError that says whose fault it was."""
        return await self.resume(run, None)

    def try_infer(self, run: InferenceJob, on_event: Callable[[RequestEvent], None]) -> bool:
        """Send the request if nothing must be waited for. Then `hear` is called once: with a reply, which `outcome`
        takes if it needs no larger grant; with anything else, which `go_on` takes."""
        link = self._link
        if not link.is_unrestricted and self._may_be_poison(run):
            return False
        room = run.output_bytes
        expected = room[1] if room is not None and room[0] is self.metadata else None
        if expected is None:
            expected = self._expected_output_bytes(run)
        if not expected and type(self._buffer) is memoryview and run.is_in_space:
            space = self._buffer
            places: list[TensorLocation] = [space[each.offset : each.offset + each.size] for each in run.inputs]
            self._submit(run, places, [], None, on_event)
            return True
        return self._try_with_slots(run, expected, on_event)

    def _may_be_poison(self, run: InferenceJob) -> bool:
        """Whether the link is over, or this request may be one that ends workers."""
        inputs = self._input_tensors(run)
        if self._link.closed or total_bytes(inputs) > OFF_LOOP_BYTES:
            return True
        self._fingerprint = fingerprint(self.model, self.version, inputs)
        return self._router.poison_requests.find(self.model, self._fingerprint) is not None

    def _try_with_slots(self, run: InferenceJob, expected: int, on_event: Callable[[RequestEvent], None]) -> bool:
        link = self._link
        out = link.memory.results.allocate(expected) if expected else None
        if expected and out is None:
            return False
        copies: list[Slot] = []
        places: list[TensorLocation] = []
        for each in run.inputs:
            size = copy_bytes(each)
            slot = link.memory.requests.allocate(size) if size else None
            if slot is not None:
                copies.append(slot)
            elif size:
                free_slots(link.memory, copies, out)
                return False
            places.append(locate_input(each, self._buffer, slot))
        self._submit(run, places, copies, out, on_event)
        return True

    async def resume(self, run: InferenceJob, said: RequestEvent | None) -> InferenceResult:
        """The rest of `try_infer` from what was heard, or all of it from None, waiting for what must be waited for."""
        while True:
            try:
                if said is None:
                    if self._link.closed:
                        await self._move_to_next_worker(run.priority)
                    said = await self._send_and_wait(run)
                while isinstance(said, InferReply) and said.needed_bytes:
                    said = await self._grant_larger(said.needed_bytes)
                if self._runs_alone and isinstance(said, InferReply) and said.code in _EXECUTED_CODES:
                    self._router.poison_requests.on_survived(self.model, self._fingerprint)
                return self.result(said)
            except WorkerExited as end:
                said = None
                self._lost_workers += self._in_flight is not None  # else it was still on its way
                is_judged = end.started or self._lost_workers >= LOST_WORKERS_LIMIT
                if is_judged and not await self._may_retry(end, run):
                    assert self._failure is not None, "a request was judged and not told why"
                    raise self._failure from None

    async def _may_retry(self, end: WorkerExited, run: InferenceJob) -> bool:
        """The worker ended with this request in it, and `_failure` says why: whether it is run once more."""
        is_first = self._failure is None
        self._failure = error = await self._router.wait_for_verdict(self._link)
        if error.code == "worker_oom" and end.alone:
            error.retryable = False  # it was this request that needed the memory
        if end.executing:
            await self._router.poison_requests.wait_for_investigation(self._link)
            case = await self._poison_entry(run)
            if case is not None and case.blocked:
                error.retryable = False  # its second worker, and nothing else was in that run
                return False
        is_in_time = time.monotonic_ns() < self.deadline_ns
        return is_first and is_in_time and self.spec.retry_on_crash and error.code in RETRYABLE_CAUSES

    async def _poison_entry(self, run: InferenceJob) -> PoisonEntry | None:
        """What is known of this request, if anything is."""
        lists = self._router.poison_requests
        if not lists.has_entries(self.model):
            return None
        if not self._fingerprint:
            self._fingerprint = await lists.fingerprint(self.model, self.version, self._input_tensors(run))
        return lists.find(self.model, self._fingerprint)

    def _input_tensors(self, run: InferenceJob) -> list[Tensor]:
        return received_tensors(run.inputs, self._buffer.view if isinstance(self._buffer, Slot) else self._buffer)

    async def _move_to_next_worker(self, priority: int) -> None:
        """To the next life: its arena has none of our bytes; the old mapping, which lives as long as we look, has."""
        old = self._buffer
        self._in_flight = None
        try:
            await self._acquire_next_link(priority)
        except MmsupError:
            if self._failure is None:
                raise
            raise self._failure from None  # there is no next life in time: what it died of is what there is to say
        if isinstance(old, Slot):
            self._buffer = await self._allocate_slot(old.size)
            self._buffer.view[:] = old.view

    async def _send_and_wait(self, run: InferenceJob) -> RequestEvent:
        """Send the request to the present link, and wait for what is said of it."""
        link = self._link
        case = await self._poison_entry(run)
        if case is not None and case.blocked:
            raise refusal_error(self.model, case)
        self._runs_alone = case is not None
        copies: list[Slot] = []
        out: Slot | None = None
        try:
            places: list[TensorLocation] = []
            for each in run.inputs:
                size = copy_bytes(each)
                slot = await link.memory.allocate(link.memory.requests, size) if size else None
                if slot is not None:
                    copies.append(slot)
                places.append(locate_input(each, self._buffer, slot))
            is_guess = run.declared_bytes(link.metadata) is None
            out = await link.memory.allocate_output(self._expected_output_bytes(run), is_guess=is_guess)
        except BaseException as error:
            free_slots(link.memory, copies, out)
            if isinstance(error, ServerError) and link.closed:
                raise WorkerExited(begun=False) from None
            raise
        if link.closed:  # while we waited for memory; all of it went with the life
            raise WorkerExited(begun=False)
        hear, answer = _event_future()
        self._submit(run, places, copies, out, hear)
        return await answer

    def _submit(
        self,
        run: InferenceJob,
        places: list[TensorLocation],
        copies: list[Slot],
        out: Slot | None,
        hear: Callable[[RequestEvent], None],
    ) -> None:
        link = self._link
        grant = (out.segment, out.offset, out.size) if out else None
        words = run.packed_signature_alone() if self._runs_alone else run.signature or run.packed_signature()
        request = Infer(link.in_flight.next_id(), words, self.deadline_ns, grant, tuple(places))
        held = copies
        if type(self._buffer) is Slot:
            held.append(self._buffer)
        for slot in held:
            slot.transition(SlotState.SENT)
        self._in_flight = entry = InFlightRequest(request, held, hear, out, self.request_id)
        link.reserved_requests -= 1
        link.submit(entry)

    def _expected_output_bytes(self, run: InferenceJob) -> int:
        """Room to grant for the results: what is declared, else the largest seen lately."""
        declared = run.declared_bytes(self._link.metadata)
        return self._router.output_sizes.largest((self.model, self.version)) if declared is None else declared

    async def _grant_larger(self, need: int) -> RequestEvent:
        link, entry = self._link, self._in_flight
        assert entry is not None, "something was heard of a request that was not sent"
        try:
            if entry.larger_grants >= GRANTS_LIMIT:
                text = f"model '{self.model}' asked again and again for a larger result buffer"
                raise WorkerError("bad_worker_reply", text, model=self.model)
            self._router.output_sizes.observe((self.model, self.version), need)
            slot = await link.memory.allocate(link.memory.results, need)
        except BaseException as error:
            link.abandon(entry)
            if isinstance(error, ServerError) and link.closed:
                raise WorkerExited(begun=True) from None
            raise
        if link.closed:
            raise WorkerExited(begun=True)
        entry.on_event, answer = _event_future()
        link.grant(entry, slot)
        return await answer

    def result(self, said: RequestEvent) -> InferenceResult:
        """The result in a final reply; whatever else was heard is raised."""
        if not isinstance(said, InferReply):
            try:
                raise said
            finally:
                del said  # the error holds this frame: if that held the error, both would stay, with all they know
        if said.code:
            raise make_error(said.code, said.text, model=self.model)
        entry = self._in_flight
        assert entry is not None, "a reply came for a request that was not sent"
        assert entry.signature is not None, "a reply without words is no result"
        if entry.output_slot is not None:
            self._router.output_sizes.observe((self.model, self.version), used_bytes(said.locations))
        outputs = zip(entry.signature.outputs, said.locations, strict=True)
        made = [
            OutputTensor(each.name, each.datatype, each.shape, entry.output_bytes(place)) for each, place in outputs
        ]
        return InferenceResult(made, said.queue_ns, said.input_ns, said.infer_ns, said.output_ns, said.batch)

    @property
    def output_signature(self) -> ValidatedSignature | None:
        """What the words of its result say, once that has come."""
        return self._in_flight.signature if self._in_flight is not None else None


def _event_future() -> tuple[Callable[[RequestEvent], None], asyncio.Future[RequestEvent]]:
    """What an entry may tell, and where that can be awaited."""
    answer: asyncio.Future[RequestEvent] = asyncio.get_running_loop().create_future()

    def hear(said: RequestEvent) -> None:
        if not answer.done():  # its owner was cancelled
            answer.set_result(said)

    return hear, answer
