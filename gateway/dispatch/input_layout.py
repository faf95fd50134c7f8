"""Where the inputs of a request lie at one worker: in the request's own space, copied beside it, or in the message."""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import TensorLocation
from mmsup.ipc.specs import INLINE_LIMIT_BYTES


def copy_bytes(given: InputTensor) -> int:
    """The size of the slot that an input needs beside the request's own space; 0 for none."""
    size = 0 if given.data is None else len(given.data)
    return size if size > INLINE_LIMIT_BYTES else 0


def locate_input(given: InputTensor, space: Slot | memoryview, copy: Slot | None) -> TensorLocation:
    """Where the worker will find an input; `copy`: where its bytes are copied now, if they are."""
    data = given.data
    if copy is not None:
        assert data is not None, "what lies in the request's space is not copied"
        copy.view[:] = data
        return copy.segment, copy.offset, copy.size
    if data is not None:
        return data
    if isinstance(space, Slot):
        return space.segment, space.offset + given.offset, given.size
    return space[given.offset : given.offset + given.size]


def free_slots(arena: LinkMemory, copies: Sequence[Slot], out: Slot | None) -> None:
    """Nothing is sent: all that was taken is free again."""
    for slot in copies:
        arena.requests.free(slot)
    if out is not None:
        arena.results.free(out)
