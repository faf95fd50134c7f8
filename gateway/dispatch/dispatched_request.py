"""One admitted request: its body, the link that it is sent over, and exactly one outcome.

The HTTP handlers call `allocate` and `resume`. The fast path, which never waits, calls what completes at once or
reports that it cannot: `try_allocate`, `try_infer`, `result`. `close` frees what the request holds and, without an
outcome, cancels it at the worker.

What happens when its worker exits is decided in retry_policy.py. A request that was in the batch that was running then
runs alone from that time on, whoever sends it; if that kills a worker again, it is refused
(docs/decisions/007-poison.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from mmsup.gateway.dispatch.exit_verdicts import Verdicts
from mmsup.gateway.dispatch.in_flight import InFlightRequest, RequestEvent, WorkerExited
from mmsup.gateway.dispatch.input_layout import copy_bytes, free_slots, locate_input
from mmsup.gateway.dispatch.poison_requests import OFF_LOOP_BYTES, PoisonRequests, refusal_error
from mmsup.gateway.dispatch.retry_policy import is_own_fault, lost_only_its_reply, may_rerun, needs_verdict
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult, OutputTensor
from mmsup.gateway.protocol.output_sizes import OutputSizeEstimator, used_bytes
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint, received_tensors, total_bytes
from mmsup.gateway.waking.admission import AdmissionControl
from mmsup.gateway.waking.request_wait import RequestWait
from mmsup.ipc.errors import MmsupError, ServerError, WorkerError, make_error
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import DeviceRegion, Infer, InferReply, TensorLocation
from mmsup.ipc.poison_policy import PoisonEntry
from mmsup.ipc.specs import INLINE_LIMIT_BYTES

EXECUTED_CODES: Final = frozenset({"", "inference_failed"})
"""Codes of a final reply that show that the request ran and its worker survived it."""
_EMPTY: Final = memoryview(b"")
GRANTS_LIMIT: Final = 2
"""A worker that asks again after this many larger output buffers reports wrong sizes."""


class Dispatcher(Protocol):
    """What a request needs of the router."""

    admission: AdmissionControl
    output_sizes: OutputSizeEstimator
    poison_requests: PoisonRequests
    verdicts: Verdicts

    async def acquire(self, name: str, version: str, wait: RequestWait) -> WorkerLink: ...


class DispatchedRequest:
    """Made by `Router.open` and `Router.try_open` when a link is found."""

    # fmt: off
    __slots__ = (
        "_router", "buffer", "client_deadline_ns", "deadline_ns", "in_flight", "link", "metadata", "request_id",
        "requested_version", "reserved_bytes", "spec",
    )
    # fmt: on

    def __init__(self, router: Dispatcher, link: WorkerLink, version: str, deadline_ns: int) -> None:
        self._router = router
        self.requested_version = version
        self.link = link
        link.reserved_requests += 1
        self.buffer: Slot | memoryview = _EMPTY
        """The body."""
        self.in_flight: InFlightRequest | None = None
        """Set when the request was sent over `link`."""
        self.request_id = ""
        """The client's own id of the request, if it gave one; for crash reports."""
        self.reserved_bytes = 0
        """Counted against the model's `max_queue_bytes`."""
        self.deadline_ns = deadline_ns
        """CLOCK_MONOTONIC. The caller may bring it forward; put off only while the model is loaded from sleep."""
        self.client_deadline_ns = 0  # of a `timeout` in the request
        self.spec = link.spec
        """Of the model version that serves the request."""
        self.metadata = link.metadata

    def close(self) -> None:
        """Free everything; no view of its memory may be used any more. Called once."""
        request, buffer, link = self.in_flight, self.buffer, self.link
        if request is None:
            link.reserved_requests -= 1
            if isinstance(buffer, Slot) and buffer.state is SlotState.FILLING:
                link.memory.requests.free(buffer)
        elif request.message.id in link.in_flight.requests:
            link.abandon(request)
        elif request.output_slot is not None and request.output_slot.state is SlotState.DRAINING:
            link.memory.results.free(request.output_slot)
        self.in_flight, self.buffer = None, _EMPTY
        self._router.admission.leave(self.spec.name, self.reserved_bytes)

    # The body.

    async def allocate(self, size: int) -> memoryview:
        """The buffer for a body of `size` bytes: shared with the worker, or private if the body is small. Once."""
        buffer = self.try_allocate(size)
        if buffer is None:
            self.buffer = await self.allocate_slot(size)
            buffer = self.buffer.view
        return buffer

    def try_allocate(self, size: int) -> memoryview | None:
        """The same, or None if memory must be waited for: then close the request or call `allocate`."""
        if size <= INLINE_LIMIT_BYTES:  # these bytes are bounded by the limit on the number of requests
            self.buffer = memoryview(bytearray(size))
            return self.buffer
        if size > self.reserved_bytes:
            self.reserve_bytes(size - self.reserved_bytes)
        slot = self.link.memory.requests.allocate(size)
        if slot is None:
            return None
        self.buffer = slot
        return slot.view

    def reserve_bytes(self, size: int) -> None:
        """Count `size` bytes of the body that are received before the buffer is allocated; ServerError `queue_full`."""
        self._router.admission.reserve(self.spec.name, self.spec, size)
        self.reserved_bytes += size

    async def allocate_slot(self, size: int) -> Slot:
        """A slot at the present worker, or at the next one if this one exits meanwhile."""
        while True:
            link = self.link
            try:
                return await link.memory.allocate(link.memory.requests, size)
            except ServerError:
                if not link.closed:
                    raise
                await self.acquire_next_link()

    async def acquire_next_link(self, priority: int = 0) -> None:
        wait = RequestWait(self.deadline_ns, self.client_deadline_ns, priority)
        self.link = link = await self._router.acquire(self.spec.name, self.requested_version, wait)
        link.reserved_requests += 1
        self.spec, self.metadata, self.deadline_ns = link.spec, link.metadata, wait.deadline_ns

    # The inference.

    def try_infer(self, job: InferenceJob, on_event: Callable[[RequestEvent], None]) -> bool:
        """Send the request unless something must be waited for. Then `on_event` is called once: with a reply, which
        `result` takes if it needs no larger output buffer; anything else `resume` takes."""
        if not self.link.is_unrestricted and self._may_be_poison(job):
            return False
        known = job.output_bytes
        expected = known[1] if known is not None and known[0] is self.metadata else None
        if expected is None:
            expected = self.expected_output_bytes(job)
        if not expected and type(self.buffer) is memoryview and job.is_in_space:
            buffer = self.buffer
            locations: list[TensorLocation] = []
            for each in job.inputs:
                locations.append(buffer[each.offset : each.offset + each.size])  # a comprehension is a call more
            signature, deadline_ns = job.signature or job.packed_signature(), self.deadline_ns
            self.in_flight = self.link.submit(
                signature, deadline_ns, tuple(locations), [], None, on_event, self.request_id
            )
            return True
        return self._try_with_slots(job, expected, on_event)

    def _may_be_poison(self, job: InferenceJob) -> bool:
        """Whether the link is closed, or the request has or may have an entry on the poison list."""
        inputs = self.input_tensors(job)
        if self.link.closed or total_bytes(inputs) > OFF_LOOP_BYTES:
            return True
        digest = fingerprint(self.spec.name, self.spec.version, inputs)
        return self._router.poison_requests.find(self.spec.name, digest) is not None

    def _try_with_slots(self, job: InferenceJob, expected: int, on_event: Callable[[RequestEvent], None]) -> bool:
        memory = self.link.memory
        output = memory.results.allocate(expected) if expected else None
        if expected and output is None:
            return False
        copies: list[Slot] = []
        locations: list[TensorLocation] = []
        for each in job.inputs:
            size = copy_bytes(each)
            slot = memory.requests.allocate(size) if size else None
            if slot is not None:
                copies.append(slot)
            elif size:
                free_slots(memory, copies, output)
                return False
            locations.append(locate_input(each, self.buffer, slot))
        self.submit(job.signature or job.packed_signature(), locations, copies, output, on_event)
        return True

    def submit(
        self,
        signature: bytes,
        locations: list[TensorLocation],
        input_slots: list[Slot],
        output: Slot | None,
        on_event: Callable[[RequestEvent], None],
        regions: tuple[DeviceRegion, ...] = (),
    ) -> None:
        """Send the request over its link; `input_slots` beside the buffer."""
        if isinstance(self.buffer, Slot):
            input_slots.append(self.buffer)
        for slot in input_slots:
            slot.transition(SlotState.SENT)
        given = signature, self.deadline_ns, tuple(locations), input_slots
        self.in_flight = self.link.submit(*given, output, on_event, self.request_id, regions)

    def input_tensors(self, job: InferenceJob) -> list[Tensor]:
        return received_tensors(job.inputs, self.buffer.view if isinstance(self.buffer, Slot) else self.buffer)

    def expected_output_bytes(self, job: InferenceJob) -> int:
        """The size of the output buffer to grant: what the model declares, else the largest of its last results."""
        known = job.output_bytes
        declared = known[1] if known is not None and known[0] is self.metadata else job.declared_bytes(self.metadata)
        if declared is not None:
            return declared
        return self._router.output_sizes.largest((self.spec.name, self.spec.version))

    async def resume(self, job: InferenceJob, event: RequestEvent | None = None) -> InferenceResult:
        """Continue `try_infer` after an event, or do all of it from None, waiting for what must be waited for. Returns
        the result or raises the MmsupError that says whose fault it was."""
        return await _WaitingInfer(self, self._router, job).run(event)

    def result(self, event: RequestEvent) -> InferenceResult:
        """The result in a final reply; any other event is raised."""
        if not isinstance(event, InferReply):
            try:
                raise event
            finally:
                del event  # the error refers to this frame; a reference back would keep all of it alive
        if event.code:
            raise make_error(event.code, event.text, model=self.spec.name)
        request = self.in_flight
        assert request is not None, "a reply came for a request that was not sent"
        assert request.signature is not None, "a reply without a signature is no result"
        if request.output_slot is not None:
            self._router.output_sizes.observe((self.spec.name, self.spec.version), used_bytes(event.locations))
        outputs = [
            OutputTensor(each.name, each.datatype, each.shape, request.output_bytes(location))
            for each, location in zip(request.signature.outputs, event.locations, strict=True)
        ]
        return InferenceResult(outputs, event)


def adopt(
    request: DispatchedRequest, number: int, job: InferenceJob, on_event: Callable[[RequestEvent], None], sent_ns: int
) -> None:
    """Go on with a known request that was admitted, and sent with this id, as if by `try_infer`. All its inputs have
    data of their own."""
    link = request.link
    link.reserved_requests -= 1
    locations = tuple([locate_input(each, _EMPTY, None) for each in job.inputs])
    message = Infer(number, job.packed_signature(), request.deadline_ns, None, locations)
    request.in_flight = InFlightRequest(message, [], on_event, None, request.request_id, sent_ns)
    link.in_flight.requests[number] = request.in_flight


class _WaitingInfer:
    """One inference that waits for memory, larger output buffers and other workers."""

    def __init__(self, request: DispatchedRequest, router: Dispatcher, job: InferenceJob) -> None:
        self._request = request
        self._router = router
        self._job = job
        self._failure: MmsupError | None = None
        """The verdict on the last worker that exited while the request may have been executing."""
        self._lost_workers = 0
        self._fingerprint = b""
        """Computed only when the model has a poison list."""
        self._runs_alone = False

    async def run(self, event: RequestEvent | None) -> InferenceResult:
        """The outcome; `event`: what has come since the request was sent, None if it was not sent."""
        request = self._request
        try:
            while True:
                try:
                    if event is None:
                        if request.link.closed:
                            await self._move_to_next_worker()
                        event = await self._send_and_wait()
                    while isinstance(event, InferReply) and event.needed_bytes:
                        event = await self._grant_larger(event.needed_bytes)
                    if self._runs_alone and type(event) is InferReply and event.code in EXECUTED_CODES:
                        self._router.poison_requests.on_survived(request.spec.name, self._fingerprint)
                    return request.result(event)
                except WorkerExited as exited:
                    event = None
                    self._lost_workers += request.in_flight is not None  # else it was not sent yet
                    if needs_verdict(exited, self._lost_workers) and not await self._may_rerun(exited):
                        assert self._failure is not None, "a request ends by a verdict and has none"
                        raise self._failure from None
        finally:
            self._failure = event = None  # an error refers to this frame: the cycle would keep memory mapped

    async def _may_rerun(self, exited: WorkerExited) -> bool:
        """The worker exited while the request may have been executing; sets `_failure` to the verdict."""
        request = self._request
        is_first = self._failure is None or lost_only_its_reply(exited, self._lost_workers)
        self._failure = error = await self._router.verdicts.wait(request.link.worker_id, request.spec.name)
        entry = None
        if exited.executing:
            await self._router.poison_requests.wait_for_investigation(request.link)
            entry = await self._poison_entry()
        if is_own_fault(error, exited, entry):
            error.retryable = False
        if entry is not None and entry.blocked:
            return False
        is_in_time = time.monotonic_ns() < request.deadline_ns
        return may_rerun(error, is_first=is_first, is_in_time=is_in_time, retry_on_crash=request.spec.retry_on_crash)

    async def _poison_entry(self) -> PoisonEntry | None:
        request, lists = self._request, self._router.poison_requests
        name = request.spec.name
        if not lists.has_entries(name):
            return None
        if not self._fingerprint:
            inputs = request.input_tensors(self._job)
            self._fingerprint = await lists.fingerprint(name, request.spec.version, inputs)
        return lists.find(name, self._fingerprint)

    async def _move_to_next_worker(self) -> None:
        """Acquire another link and copy the body into its memory; the old mapping lives as long as the view of it."""
        request = self._request
        old = request.buffer
        request.in_flight = None
        try:
            await request.acquire_next_link(self._job.priority)
        except MmsupError:
            if self._failure is None:
                raise
            raise self._failure from None  # no other worker comes in time: answer with the verdict on the last one
        self._fingerprint = b""  # depends on the version
        if isinstance(old, Slot):
            request.buffer = await request.allocate_slot(old.size)
            request.buffer.view[:] = old.view

    async def _send_and_wait(self) -> RequestEvent:
        request, job = self._request, self._job
        link = request.link
        entry = await self._poison_entry()
        if entry is not None and entry.blocked:
            raise refusal_error(request.spec.name, entry)
        self._runs_alone = entry is not None
        copies: list[Slot] = []
        output: Slot | None = None
        try:
            locations: list[TensorLocation] = []
            for each in job.inputs:
                size = copy_bytes(each)
                slot = await link.memory.allocate(link.memory.requests, size) if size else None
                if slot is not None:
                    copies.append(slot)
                locations.append(locate_input(each, request.buffer, slot))
            is_guess = job.declared_bytes(link.metadata) is None
            output = await link.memory.allocate_output(request.expected_output_bytes(job), is_guess=is_guess)
        except BaseException as error:
            free_slots(link.memory, copies, output)
            if isinstance(error, ServerError) and link.closed:
                raise WorkerExited(started=False) from None
            raise
        if link.closed:  # while memory was waited for; all of it went with the link
            raise WorkerExited(started=False)
        on_event, future = _event_future()
        signature = job.packed_signature_alone() if self._runs_alone else job.packed_signature()
        request.submit(signature, locations, copies, output, on_event, job.regions)
        return await future

    async def _grant_larger(self, needed_bytes: int) -> RequestEvent:
        request, in_flight = self._request, self._request.in_flight
        link, name = request.link, request.spec.name
        assert in_flight is not None, "an event came for a request that was not sent"
        try:
            if in_flight.larger_grants >= GRANTS_LIMIT:
                text = f"model '{name}' asked again and again for a larger result buffer"
                raise WorkerError("bad_worker_reply", text, model=name)
            slot = await link.memory.allocate(link.memory.results, needed_bytes)
            self._router.output_sizes.observe((name, request.spec.version), needed_bytes)
        except BaseException as error:
            link.abandon(in_flight)
            if isinstance(error, ServerError) and link.closed:
                raise WorkerExited(started=True) from None
            raise
        if link.closed:
            raise WorkerExited(started=True)
        in_flight.on_event, future = _event_future()
        link.grant(in_flight, slot)
        return await future


def _event_future() -> tuple[Callable[[RequestEvent], None], asyncio.Future[RequestEvent]]:
    future: asyncio.Future[RequestEvent] = asyncio.get_running_loop().create_future()

    def on_event(event: RequestEvent) -> None:
        if not future.done():  # its owner was cancelled
            future.set_result(event)

    return on_event, future
