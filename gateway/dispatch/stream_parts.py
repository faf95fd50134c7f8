"""What a part of a stream does to its request in flight, which stays in flight until the last reply.

The first part is an event of the request as its only reply would be: until then it is like any other, with its
deadline, and is sent to another worker where it may be. All that comes after the first part waits in its queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mmsup.gateway.dispatch.in_flight import InFlightRequest, RequestEvent
from mmsup.gateway.dispatch.streams.part_queue import PartQueue
from mmsup.gateway.protocol.inference_job import InferenceResult, OutputTensor
from mmsup.ipc.messages.data import ResponsePart
from mmsup.ipc.specs import TensorSpec

NO_DEADLINE_NS: Final = 1 << 62


def accept_part(
    request: InFlightRequest, part: ResponsePart, outputs: tuple[TensorSpec, ...], send_credit: Callable[[int], None]
) -> str:
    """Hand on a part whose reply was validated; returns what is wrong with it, or an empty text. `outputs`: those in
    it."""
    if request.abandoned:
        return ""
    parts = request.parts
    if parts is not None:
        error = parts.count(part)
        if not error:
            parts.put(part if part.needed_bytes else _result(request, part, outputs))
        return error
    if request.notified:
        return "a part of a stream comes while its buffer is on its way"
    if part.needed_bytes:
        request.notified = True
        request.on_event(part)
        return ""
    first: PartQueue[RequestEvent] = PartQueue(send_credit)
    error = first.count(part)
    if error:
        return error
    request.parts = first
    request.message.deadline_ns = NO_DEADLINE_NS
    on_event, request.on_event = request.on_event, first.on_end
    on_event(part)
    return ""


def _result(request: InFlightRequest, part: ResponsePart, outputs: tuple[TensorSpec, ...]) -> InferenceResult:
    made = [
        OutputTensor(each.name, each.datatype, each.shape, request.output_bytes(location))
        for each, location in zip(outputs, part.locations, strict=True)
    ]
    return InferenceResult(made, part)
