"""What a worker's reply may say: every number checked before any byte of it is used. Pure.

The words of a reply are checked once for all replies that have the same; what changes, each time.
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
    """An Outline with the size of each output, None where only the data can tell; or what is wrong with it."""

    packed: bytes
    outputs: tuple[TensorSpec, ...] = ()
    sizes: tuple[int | None, ...] = ()
    error: str = ""


def validate_signature(words: bytes) -> ValidatedSignature:
    """What these words of a reply say."""
    try:
        outline = unpack_reply_signature(words)
    except WireError as error:
        return ValidatedSignature(words, error=f"its words are none: {error}")
    fault = _signature_error(outline)
    if fault:
        return ValidatedSignature(words, error=fault)
    sizes = tuple([size_bytes(each.datatype, each.shape) for each in outline.outputs])
    return ValidatedSignature(words, outline.outputs, sizes)


def _signature_error(outline: ReplySignature) -> str:
    names = [each.name for each in outline.outputs]
    if len(set(names)) != len(names):
        return "it names an output twice"
    for each in outline.outputs:
        if each.datatype not in ITEM_BYTES:
            return f"output '{each.name:.80}': its datatype does not exist"
        if len(each.shape) > RANK_LIMIT or any(size < 0 for size in each.shape):
            return f"output '{each.name:.80}': its shape is impossible"
    return ""


def validate_reply(reply: InferReply, said: ValidatedSignature | None, granted: Slot | None) -> str:
    """What is wrong with a reply, or an empty text; `said`: what its words say, if it has any."""
    if said is None:
        if reply.needed_bytes:
            return "" if 0 < reply.needed_bytes <= NEED_LIMIT_BYTES else f"it asks for {reply.needed_bytes} bytes"
        return "" if reply.code else "it says nothing"
    if said.error:
        return said.error
    places, sizes = reply.locations, said.sizes
    if len(places) != len(sizes):
        return f"{len(places)} outputs where its words have {len(sizes)}"
    for index, place in enumerate(places):
        size = sizes[index]
        if isinstance(place, tuple):
            fault = _location_error(place, size, granted)
        elif size is None or len(place) == size:
            continue
        else:
            fault = f"{len(place)} bytes where its shape has {size}"
        if fault:
            return f"output '{said.outputs[index].name:.80}': {fault}"
    return ""


def _location_error(place: tuple[int, int, int], expected: int | None, granted: Slot | None) -> str:
    segment, offset, size = place
    if size < 0:
        return "its size is negative"
    if expected is not None and expected != size:
        return f"{size} bytes where its shape has {expected}"
    if granted is None or segment != granted.segment:
        return "it lies in memory that was not granted"
    if not granted.offset <= offset <= granted.offset + granted.size - size:
        return "it lies outside the memory that was granted"
    return ""
