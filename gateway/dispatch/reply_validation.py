"""Validation of workers' replies: every number is checked before any output byte is used. Pure.

A reply's signature (names, datatypes, shapes) is validated once for all replies that have the same; its locations are
validated each time. A worker may not choose how much of that there is: a signature that is longer than any of the
model's declared outputs can be is refused before it is parsed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.errors import MODEL_CODES
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import InferReply, ReplySignature
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, RANK_LIMIT, size_bytes
from mmsup.ipc.transport.codec import unpack_reply_signature
from mmsup.ipc.transport.dataclass_codec import WireError

NEED_LIMIT_BYTES: Final = 1 << 40
TEXT_LIMIT: Final = 4096
"""Characters of an error text that are looked at; workers send no more than some hundred."""
NUMBER_BITS: Final = 50
"""Of a time (13 days in nanoseconds) or a batch size. The sums of such numbers fit into the counters."""
_EMPTY: Final = "it has neither a result nor an error"
_SIGNATURE_BYTES: Final = 64
_TENSOR_BYTES: Final = 32 + 9 * RANK_LIMIT
"""Most bytes of a packed tensor beside its name: datatype and shape."""


@dataclass(frozen=True, slots=True, eq=False)
class ValidatedSignature:
    """A reply signature with the size of each output (None if only the data can tell), or what is wrong with it."""

    packed: bytes
    outputs: tuple[TensorSpec, ...] = ()
    sizes: tuple[int | None, ...] = ()
    error: str = ""


def signature_limit_bytes(metadata: Metadata) -> int:
    """The longest signature that a reply with all outputs of a model can have."""
    return _SIGNATURE_BYTES + sum(len(each.name.encode()) + _TENSOR_BYTES for each in metadata.outputs)


def validate_signature(packed: bytes, metadata: Metadata) -> ValidatedSignature:
    """`metadata`: of the model, which declares the outputs that may be named."""
    if len(packed) > signature_limit_bytes(metadata):
        return ValidatedSignature(
            b"", error=f"{len(packed)} bytes of names and shapes for {len(metadata.outputs)} outputs"
        )
    try:
        signature = unpack_reply_signature(packed)
    except WireError as error:
        return ValidatedSignature(packed, error=f"its signature is malformed: {error}")
    text = _signature_error(signature, {each.name for each in metadata.outputs})
    if text:
        return ValidatedSignature(packed, error=text)
    sizes = tuple([size_bytes(each.datatype, each.shape) for each in signature.outputs])
    return ValidatedSignature(packed, signature.outputs, sizes)


def _signature_error(signature: ReplySignature, declared: set[str]) -> str:
    names = [each.name for each in signature.outputs]
    if len(set(names)) != len(names):
        return "it names an output twice"
    for each in signature.outputs:
        if each.name not in declared:
            return f"output '{each.name:.80}': the model declares no such output"
        if each.datatype not in ITEM_BYTES:
            return f"output '{each.name:.80}': its datatype does not exist"
        if len(each.shape) > RANK_LIMIT or _is_impossible(each.shape):
            return f"output '{each.name:.80}': its shape is impossible"
    return ""


def _is_impossible(shape: tuple[int, ...]) -> bool:
    """Whether no array has this shape. An empty one has no bytes that would contradict a size beside its 0, which goes
    to clients that may allocate by it; NumPy too counts such sizes."""
    if 0 in shape and math.prod([size for size in shape if size]) > NEED_LIMIT_BYTES:
        return True
    return any(size < 0 for size in shape)


def validate_reply(reply: InferReply, signature: ValidatedSignature | None, granted: Slot | None) -> str:
    """What is wrong with a reply, or an empty text. `signature`: None if the reply has none."""
    times_ns = reply.queue_ns | reply.input_ns | reply.infer_ns | reply.output_ns
    if (times_ns | reply.batch | reply.rows) >> NUMBER_BITS:
        return "a time or its batch size is impossible"
    if signature is None:
        if reply.needed_bytes:
            return "" if 0 < reply.needed_bytes <= NEED_LIMIT_BYTES else f"it asks for {reply.needed_bytes} bytes"
        if reply.code not in MODEL_CODES:
            return f"a worker may not answer with the error '{reply.code:.40}'" if reply.code else _EMPTY
        return ""
    if signature.error:
        return signature.error
    locations, sizes = reply.locations, signature.sizes
    if len(locations) != len(sizes):
        return f"{len(locations)} outputs where its signature has {len(sizes)}"
    for index, location in enumerate(locations):
        size = sizes[index]
        if isinstance(location, tuple):
            error = location_error(location, size, granted)
        elif size is None or len(location) == size:
            continue
        else:
            error = f"{len(location)} bytes where its shape has {size}"
        if error:
            return f"output '{signature.outputs[index].name:.80}': {error}"
    return ""


def location_error(location: tuple[int, int, int], expected: int | None, granted: Slot | None) -> str:
    """What is wrong with where a worker says to have written; `expected`: bytes, None if only the data can tell."""
    segment, offset, size = location
    if size < 0:
        return "its size is negative"
    if expected is not None and expected != size:
        return f"{size} bytes where its shape has {expected}"
    if granted is None or segment != granted.segment:
        return "it lies in memory that was not granted"
    if not granted.offset <= offset <= granted.offset + granted.size - size:
        return "it lies outside the memory that was granted"
    return ""
