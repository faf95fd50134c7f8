"""Validation of workers' replies: every number is checked before any output byte is used. Pure.

A reply's signature (names, datatypes, shapes) is validated once for all replies that have the same; its locations are
validated each time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import InferReply, ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, RANK_LIMIT, size_bytes
from mmsup.ipc.transport.codec import unpack_reply_signature
from mmsup.ipc.transport.dataclass_codec import WireError

NEED_LIMIT_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class ValidatedSignature:
    """A reply signature with the size of each output (None if only the data can tell), or what is wrong with it."""

    packed: bytes
    outputs: tuple[TensorSpec, ...] = ()
    sizes: tuple[int | None, ...] = ()
    error: str = ""


def validate_signature(packed: bytes) -> ValidatedSignature:
    try:
        signature = unpack_reply_signature(packed)
    except WireError as error:
        return ValidatedSignature(packed, error=f"its signature is malformed: {error}")
    text = _signature_error(signature)
    if text:
        return ValidatedSignature(packed, error=text)
    sizes = tuple([size_bytes(each.datatype, each.shape) for each in signature.outputs])
    return ValidatedSignature(packed, signature.outputs, sizes)


def _signature_error(signature: ReplySignature) -> str:
    names = [each.name for each in signature.outputs]
    if len(set(names)) != len(names):
        return "it names an output twice"
    for each in signature.outputs:
        if each.datatype not in ITEM_BYTES:
            return f"output '{each.name:.80}': its datatype does not exist"
        if len(each.shape) > RANK_LIMIT or any(size < 0 for size in each.shape):
            return f"output '{each.name:.80}': its shape is impossible"
    return ""


def validate_reply(reply: InferReply, signature: ValidatedSignature | None, granted: Slot | None) -> str:
    """What is wrong with a reply, or an empty text. `signature`: None if the reply has none."""
    if signature is None:
        if reply.needed_bytes:
            return "" if 0 < reply.needed_bytes <= NEED_LIMIT_BYTES else f"it asks for {reply.needed_bytes} bytes"
        return "" if reply.code else "it has neither a result nor an error"
    if signature.error:
        return signature.error
    locations, sizes = reply.locations, signature.sizes
    if len(locations) != len(sizes):
        return f"{len(locations)} outputs where its signature has {len(sizes)}"
    for index, location in enumerate(locations):
        size = sizes[index]
        if isinstance(location, tuple):
            error = _location_error(location, size, granted)
        elif size is None or len(location) == size:
            continue
        else:
            error = f"{len(location)} bytes where its shape has {size}"
        if error:
            return f"output '{signature.outputs[index].name:.80}': {error}"
    return ""


def _location_error(location: tuple[int, int, int], expected: int | None, granted: Slot | None) -> str:
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
