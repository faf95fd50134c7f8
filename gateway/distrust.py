"""What a worker's reply may say: every number checked before any byte of it is used. Pure."""

from __future__ import annotations

from mmsup.ipc.arena import Slot
from mmsup.ipc.messages import Reply, Tensor
from mmsup.ipc.tensor import ITEM_BYTES, RANK_LIMIT, size_bytes

NEED_LIMIT_BYTES = 1 << 40


def fault_of(reply: Reply, granted: Slot | None) -> str:
    """What is wrong with a reply, or an empty text."""
    if reply.need:
        return "" if 0 < reply.need <= NEED_LIMIT_BYTES else f"it asks for {reply.need} bytes"
    names = [tensor.name for tensor in reply.outputs]
    if len(set(names)) != len(names):
        return "it names an output twice"
    for tensor in reply.outputs:
        fault = _tensor_fault(tensor, granted)
        if fault:
            return f"output '{tensor.name:.80}': {fault}"
    return ""


def _tensor_fault(tensor: Tensor, granted: Slot | None) -> str:
    if tensor.datatype not in ITEM_BYTES:
        return "its datatype does not exist"
    if len(tensor.shape) > RANK_LIMIT or any(size < 0 for size in tensor.shape):
        return "its shape is impossible"
    if tensor.size < 0:
        return "its size is negative"
    expected = size_bytes(tensor.datatype, tensor.shape)
    if expected is not None and expected != tensor.size:
        return f"{tensor.size} bytes where its shape has {expected}"
    if tensor.segment < 0:
        return "" if tensor.data is not None and len(tensor.data) == tensor.size else "its inline bytes are not there"
    if granted is None or tensor.segment != granted.segment:
        return "it lies in memory that was not granted"
    if not granted.offset <= tensor.offset <= granted.offset + granted.size - tensor.size:
        return "it lies outside the memory that was granted"
    return ""
