from __future__ import annotations

import pytest

from mmsup.ipc.protobuf_wire import VARINT, Field, ProtobufError, fields, varint


def test_the_fields_of_a_message_are_found_by_number_and_place() -> None:
    data = b"\x08\x96\x01" + b"\x12\x02hi" + b"\x1d\x00\x00\x80\x3f" + b"\x21" + b"\x00" * 8
    found = list(fields(memoryview(data), 0, len(data)))
    assert found == [Field(1, VARINT, 1, 3), Field(2, 2, 5, 7), Field(3, 5, 8, 12), Field(4, 1, 13, 21)]
    assert varint(memoryview(data), 1, 3) == (150, 3)


@pytest.mark.parametrize(
    ("data", "missing_bytes"),
    [
        (b"\x12\x05hi", 3),
        (b"\x1d\x00", 3),
        (b"\x08\xff\xff", 0),
        (b"\x08" + b"\xff" * 20, 0),
        (b"\x0b", 0),
        (b"\x00\x01", 0),
    ],
)
def test_bytes_that_are_no_message_are_refused_at_once(data: bytes, missing_bytes: int) -> None:
    with pytest.raises(ProtobufError) as refused:
        list(fields(memoryview(data), 0, len(data)))
    assert refused.value.missing_bytes == missing_bytes
