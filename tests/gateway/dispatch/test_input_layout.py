from __future__ import annotations

from mmsup.gateway.dispatch.input_layout import copy_bytes, locate_input
from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.specs import INLINE_LIMIT_BYTES

SPACE = memoryview(bytes(range(100)))
FEW, MANY = bytes(3), bytes(INLINE_LIMIT_BYTES + 1)


def given(data: bytes | None = None) -> InputTensor:
    return InputTensor("x", "UINT8", (4,), offset=10, size=4, data=data)


def slot(size: int) -> Slot:
    return Slot(2, 4096, size, memoryview(bytearray(size)), SlotState.FILLING)


def test_only_large_bytes_of_their_own_are_copied() -> None:
    assert copy_bytes(given()) == 0
    assert copy_bytes(given(FEW)) == 0
    assert copy_bytes(given(MANY)) == len(MANY)


def test_an_input_lies_in_the_space_of_its_request() -> None:
    assert locate_input(given(), SPACE, None) == SPACE[10:14]
    assert locate_input(given(), slot(100), None) == (2, 4106, 4)


def test_bytes_of_its_own_travel_as_they_are_or_are_copied() -> None:
    assert locate_input(given(FEW), SPACE, None) == FEW
    copy = slot(4)
    assert locate_input(given(b"abcd"), SPACE, copy) == (2, 4096, 4)
    assert bytes(copy.view) == b"abcd"
