"""The calls of other models by the code that runs in one worker: from its records to the replies.

A call belongs to the requests that the worker executes. It has their deadline, and is cancelled when nobody waits for
them any more, when the worker says that nobody waits for it, and when the worker ends. Its inputs travel in its record,
or in a slot that the worker is granted for them and that is free again when they have been copied; its outputs in the
reply, or in a slot that the worker has read and given back by EndCall.

What a worker may hold here is bounded: OPEN_CALLS, and in bytes of inputs its model's `max_queue_bytes`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from mmsup.gateway.composition.composer import Composer
from mmsup.gateway.composition.inference import AskedInference, AskedTensor
from mmsup.gateway.composition.invocation import Invocation
from mmsup.gateway.dispatch.reply_validation import location_error
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.http import error_status
from mmsup.gateway.infer.handler import client_error
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.memory.allocator import padded_size
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.calls import CallInputs, CallModel, CallReply, EndCall, GrantCall
from mmsup.ipc.messages.data import InferSignature, ReplySignature, TensorLocation
from mmsup.ipc.specs import TensorSpec, is_inline
from mmsup.ipc.transport.codec import CallRecord, pack_signature, unpack_infer_signature
from mmsup.ipc.transport.dataclass_codec import WireError

OPEN_CALLS: Final = 64
"""Calls of one worker that may be open at once."""


@dataclass(slots=True, eq=False)
class WorkerCall:
    """One call, until its reply; with outputs in the arena, until EndCall."""

    record: CallModel
    signature: InferSignature
    task: asyncio.Task[None] | None = None
    inputs: asyncio.Future[tuple[TensorLocation, ...]] | None = None
    """Awaited after a grant."""
    granted: Slot | None = None
    reply_slot: Slot | None = None
    abandoned: set[int] = field(default_factory=set[int])
    """Of its parents, those that nobody waits for."""

    @property
    def is_abandoned(self) -> bool:
        return not self.record.is_shared and self.abandoned.issuperset(self.record.parents)


class WorkerCalls:
    """The calls of one worker process; see CallsOfWorker."""

    def __init__(self, link: WorkerLink, composer: Composer) -> None:
        self._link = link
        self._composer = composer
        self._open: dict[int, WorkerCall] = {}
        self._held_bytes = 0
        """Granted for inputs."""

    def on_record(self, record: CallRecord) -> str:
        match record:
            case CallModel():
                return self._on_call(record)
            case CallInputs():
                call = self._open.get(record.id)
                if call is None or call.inputs is None or call.inputs.done():
                    return "it sends inputs that nothing was granted for" if call is not None else ""
                call.inputs.set_result(record.locations)
            case EndCall():
                self._end(record.id)
            case _:
                return f"a worker sent a {type(record).__name__}"
        return ""

    def on_abandoned(self, number: int) -> None:
        for call in list(self._open.values()):
            if number in call.record.parents:
                call.abandoned.add(number)
                if call.task is not None and call.is_abandoned:
                    call.task.cancel()

    def close(self) -> None:
        for number in list(self._open):
            self._end(number)

    def _on_call(self, record: CallModel) -> str:
        try:
            signature = unpack_infer_signature(record.signature)
        except WireError as error:
            return f"a call that is malformed: {error}"
        if record.id in self._open or record.needed_bytes < 0:
            return "a call that is open already, or of an impossible size"
        if not record.needed_bytes and len(record.locations) != len(signature.inputs):
            return "a call with other inputs than it names"
        call = WorkerCall(record, signature)
        if len(self._open) >= OPEN_CALLS:
            text = f"Exceeds maximum queue size: model '{self._link.spec.name}' has {OPEN_CALLS} calls open"
            self._refuse(call, ServerError("queue_full", text, model=record.model))
            return ""
        self._open[record.id] = call
        call.task = asyncio.get_running_loop().create_task(self._serve(call), name=f"call of {record.model:.80}")
        return ""

    def _end(self, number: int) -> None:
        """Nobody waits for it any more, or its outputs were read."""
        call = self._open.pop(number, None)
        if call is None:
            return
        if call.task is not None:
            call.task.cancel()
        if call.reply_slot is not None:
            self._link.memory.requests.free(call.reply_slot)
            call.reply_slot = None

    async def _serve(self, call: WorkerCall) -> None:
        """The outermost frame of a call: the worker gets one reply, unless it has ended or does not want it."""
        record = call.record
        error: Exception | None = None
        try:
            await self._run(call)
        except asyncio.CancelledError:
            error = self._cancelled(record.model)
        except Exception as caught:  # noqa: BLE001 - the model's code gets an error of ours too
            error = caught
        finally:
            self._free_inputs(call)
        if error is not None:
            self._refuse(call, client_error(error))
        call.task = None
        if call.reply_slot is None and self._open.get(record.id) is call:
            del self._open[record.id]

    def _cancelled(self, model: str) -> ServerError:
        text = f"the request of model '{self._link.spec.name}' for which it called model '{model}' has ended"
        return ServerError("cancelled", text, model=model)

    def _refuse(self, call: WorkerCall, error: MmsupError) -> None:
        is_wanted = self._open.get(call.record.id, call) is call
        if is_wanted and not self._link.closed:
            text, retryable = error_status.text(error), error.retryable
            self._link.channel.send(CallReply(call.record.id, error.code, text, retryable))

    async def _run(self, call: WorkerCall) -> None:
        record, link = call.record, self._link
        deadline_ns = self._deadline_ns(record)
        parent = self._composer.invocations.served_by(link, record.parents)
        chain = (*(parent.chain if parent is not None else (link.spec.name,)), record.model)
        invocation = Invocation(chain, link if record.blocks else None)
        locations = record.locations if not record.needed_bytes else await self._granted(call)
        asked = AskedInference(
            record.version,
            [
                AskedTensor(each.name, each.datatype, each.shape, self._data(call, location))
                for each, location in zip(call.signature.inputs, locations, strict=True)
            ],
            call.signature.outputs,
            call.signature.parameters,
            deadline_ns,
            call.signature.priority,
            on_read=partial(self._free_inputs, call),
        )
        async with self._composer.run(asked, invocation) as outputs:
            await self._reply(call, outputs)

    def _deadline_ns(self, record: CallModel) -> int:
        """Until when it may last; ServerError if nobody waits for it. A stream is open beyond its deadline, and other
        gateways' requests in the run have some that this one does not know: then it has as long as a new request."""
        requests, now_ns = self._link.in_flight.requests, time.monotonic_ns()
        parents = [requests[number] for number in record.parents if number in requests]
        limits = [each.deadline_ns for each in parents if not getattr(each, "abandoned", False)]
        if record.is_shared or (limits and max(limits) <= now_ns):
            limits.append(now_ns + int(self._link.spec.deadline_s * 1e9))
        if not limits:
            raise self._cancelled(record.model)
        return min(max(limits), record.deadline_ns or max(limits))

    # Memory.

    async def _granted(self, call: WorkerCall) -> tuple[TensorLocation, ...]:
        """Grant the worker memory for its inputs, and wait until they are there."""
        record, link, size = call.record, self._link, call.record.needed_bytes
        limit = self._composer.max_body_bytes
        if size > limit:
            text = f"a call with {size} bytes of inputs exceeds the maximum allowed {limit} bytes"
            raise CallerError("too_large", text, model=record.model)
        if self._held_bytes and self._held_bytes + size > link.spec.max_queue_bytes:
            text = f"Exceeds maximum queue size: the calls of model '{link.spec.name}' hold {self._held_bytes} bytes"
            raise ServerError("queue_full", text, model=record.model, retry_after_s=1)
        self._held_bytes += size
        try:
            call.granted = slot = await link.memory.allocate(link.memory.results, size)
        finally:
            if call.granted is None:
                self._held_bytes -= size
        call.inputs = asyncio.get_running_loop().create_future()
        link.channel.send(GrantCall(record.id, slot.segment, slot.offset, slot.size))
        locations = await call.inputs
        fault = "" if len(locations) == len(call.signature.inputs) else "a call with other inputs than it names"
        for location in locations:
            fault = fault or (location_error(location, None, slot) if isinstance(location, tuple) else "")
        if fault:
            link.channel.on_protocol_error(f"inputs of a call: {fault}")
            raise self._cancelled(record.model)
        return locations

    def _data(self, call: WorkerCall, location: TensorLocation) -> bytes | memoryview:
        if not isinstance(location, tuple):
            return location
        slot, (_, offset, size) = call.granted, location
        if slot is None:
            self._link.channel.on_protocol_error("a call names memory that was not granted")
            raise self._cancelled(call.record.model)
        return slot.view[offset - slot.offset : offset - slot.offset + size]

    def _free_inputs(self, call: WorkerCall) -> None:
        slot, call.granted = call.granted, None
        if slot is not None:
            self._held_bytes -= call.record.needed_bytes
            self._link.memory.results.free(slot)

    async def _reply(self, call: WorkerCall, outputs: Sequence[OutputTensor]) -> None:
        """Copy the outputs to where the worker reads, and say so."""
        link, parts = self._link, [(each, each.data.cast("B")) for each in outputs]
        locations: list[TensorLocation] = []
        moved: list[tuple[int, memoryview]] = []
        needed = 0
        for _, data in parts:
            if is_inline(len(data), len(locations) - len(moved)):
                locations.append(bytes(data))
            else:
                locations.append((0, needed, len(data)))
                moved.append((needed, data))
                needed += padded_size(len(data))
        if needed:
            slot = await link.memory.allocate(link.memory.requests, needed)
            try:
                for at, data in moved:
                    await self._composer.copy(data, slot.view[at : at + len(data)])
            except BaseException:
                link.memory.requests.free(slot)
                raise
            slot.transition(SlotState.SENT)
            call.reply_slot = slot
            locations = [
                (slot.segment, slot.offset + each[1], each[2]) if isinstance(each, tuple) else each
                for each in locations
            ]
        if not link.closed:
            specs = tuple([TensorSpec(each.name, each.datatype, tuple(each.shape)) for each in outputs])
            signature = pack_signature(ReplySignature(specs))
            link.channel.send(
                CallReply(call.record.id, "", "", retryable=False, signature=signature, locations=tuple(locations))
            )


def attach_calls(composer: Composer, link: WorkerLink) -> None:
    """Let the code of this worker's model call others."""
    link.in_flight.calls = WorkerCalls(link, composer)
