"""Where a worker finds the inputs of a request: in the request's buffer, in slots of their own, or in the message."""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES


def copy_bytes(tensor: InputTensor) -> int:
    """The size of the slot into which an input must be copied; 0 if it need not be."""
    size = 0 if tensor.data is None else len(tensor.data)
    return size if size > INLINE_LIMIT_BYTES else 0


def locate_input(tensor: InputTensor, buffer: Slot | memoryview, copy: Slot | None) -> TensorLocation:
    """Where the worker finds an input. `copy`: the slot of `copy_bytes`, into which it is copied now."""
    data = tensor.data
    if copy is not None:
        assert data is not None, "an input that lies in the request's buffer is not copied"
        copy.view[:] = data
        return copy.segment, copy.offset, copy.size
    if data is not None:
        return data
    if isinstance(buffer, Slot):
        return buffer.segment, buffer.offset + tensor.offset, tensor.size
    return buffer[tensor.offset : tensor.offset + tensor.size]


def free_slots(memory: LinkMemory, copies: Sequence[Slot], output: Slot | None) -> None:
    for slot in copies:
        memory.requests.free(slot)
    if output is not None:
        memory.results.free(output)
