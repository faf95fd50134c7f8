"""No number of a worker's reply is believed."""

from __future__ import annotations

import pytest

from mmsup.gateway.distrust import fault_of
from mmsup.ipc.arena import Slot, SlotState
from mmsup.ipc.messages import Reply, Tensor

GRANTED = Slot(5, 1024, 4096, memoryview(bytearray(4096)), SlotState.GRANTED)


def reply(*outputs: Tensor, need: int = 0) -> Reply:
    return Reply(1, "", "", outputs, need)


def placed(segment: int = 5, offset: int = 1024, size: int = 64, shape: tuple[int, ...] = (16,)) -> Tensor:
    return Tensor("y", "FP32", shape, segment, offset, size)


@pytest.mark.parametrize(
    "good",
    [
        reply(placed()),
        reply(placed(offset=1024 + 4096 - 64)),
        reply(Tensor("y", "FP32", (2,), size=8, data=b"12345678")),
        reply(Tensor("y", "BYTES", (1,), size=5, data=b"\1\0\0\0a")),
        reply(Tensor("y", "FP32", (0, 4), size=0, data=b"")),
        reply(),
        reply(need=5000),
    ],
)
def test_an_honest_reply_has_no_fault(good: Reply) -> None:
    assert fault_of(good, GRANTED) == ""


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (reply(placed(segment=6)), "not granted"),
        (reply(placed(offset=1023)), "outside"),
        (reply(placed(offset=1024 + 4096 - 63)), "outside"),
        (reply(placed(offset=2**63)), "outside"),
        (reply(placed(size=-64)), "negative"),
        (reply(placed(size=60)), "60 bytes where its shape has 64"),
        (reply(placed(shape=(2**62, 2**62))), "bytes where its shape has"),
        (reply(placed(shape=(-16,))), "shape"),
        (reply(placed(shape=(1,) * 17)), "shape"),
        (reply(Tensor("y", "FP31", (1,), 5, 1024, 4)), "datatype"),
        (reply(Tensor("y", "FP32", (2,), size=8, data=b"1234")), "inline"),
        (reply(Tensor("y", "FP32", (2,), size=8)), "inline"),
        (reply(placed(), placed()), "twice"),
        (reply(need=-1), "-1 bytes"),
        (reply(need=2**50), "bytes"),
    ],
)
def test_a_reply_that_lies_is_found_out(bad: Reply, word: str) -> None:
    assert word in fault_of(bad, GRANTED)


def test_memory_cannot_be_named_where_none_was_granted() -> None:
    assert "not granted" in fault_of(reply(placed()), None)
