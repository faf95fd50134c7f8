"""Every message round-trips; anything else is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import types
import typing
from typing import Any

import msgpack
import pytest

from mmsup.ipc.messages.calls import CallInputs, CallModel, CallReply, EndCall, GrantCall
from mmsup.ipc.messages.data import (
    AttachExtent,
    Cancel,
    DetachExtent,
    DeviceRegion,
    ForgetHandle,
    GrantBuffer,
    Infer,
    InferReply,
    InferSignature,
    InferWithRegions,
    ReplySignature,
    ResponsePart,
    StreamCredit,
    TensorLocation,
)
from mmsup.ipc.messages.gateway_control import FROM_GATEWAY, TO_GATEWAY
from mmsup.ipc.messages.keeper_control import FROM_KEEPER, TO_KEEPER
from mmsup.ipc.messages.worker_control import FROM_WORKER, TO_WORKER, StopWorker
from mmsup.ipc.transport.codec import (
    FRAME_RECORDS,
    DataRecord,
    decode,
    encode,
    infer_record_parts,
    join_records,
    pack_frame,
    pack_limited,
    pack_record,
    pack_signature,
    unpack_frame,
    unpack_infer_signature,
    unpack_reply_signature,
)
from mmsup.ipc.transport.dataclass_codec import WireError

ALL: tuple[type[Any], ...] = (
    *TO_WORKER,
    *FROM_WORKER,
    *TO_GATEWAY,
    *FROM_GATEWAY,
    InferSignature,
    ReplySignature,
    AttachExtent,
    DetachExtent,
    *TO_KEEPER,
    *FROM_KEEPER,
)


def any_value(hint: Any, rng: random.Random) -> Any:
    if hint is Any:
        return rng.choice([None, 1, "x", [1, {"a": 2}], True])
    if dataclasses.is_dataclass(hint):
        return any_record(typing.cast("type[Any]", hint), rng)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return tuple(any_value(arguments[0], rng) for _ in range(rng.randrange(3)))
    if origin is dict:
        return {f"k{i}": any_value(arguments[1], rng) for i in range(rng.randrange(3))}
    if origin is types.UnionType:
        return None if rng.random() < 0.5 else any_value(arguments[0], rng)
    return {
        int: rng.getrandbits(62),
        float: rng.random(),
        str: "té\n" * rng.randrange(3),
        bytes: rng.randbytes(rng.randrange(9)),
        bool: rng.random() < 0.5,
    }[hint]


def any_record(kind: type[Any], rng: random.Random) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(**{each.name: any_value(hints[each.name], rng) for each in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", sorted(set(ALL), key=str))
def test_each_control_message_round_trips(kind: type[Any]) -> None:
    rng = random.Random(kind.__name__)
    for _ in range(20):
        message = any_record(kind, rng)
        assert decode(encode(message), [kind]) == message


CALLS = (CallModel, CallInputs, EndCall, GrantCall, CallReply)
REGIONS = (InferWithRegions, ForgetHandle)
RECORDS = (
    *(Infer, GrantBuffer, Cancel, InferReply, ResponsePart, StreamCredit, AttachExtent, DetachExtent),
    *(*CALLS, *REGIONS),
)


def any_place(rng: random.Random) -> TensorLocation:
    return rng.randbytes(rng.randrange(9)) if rng.random() < 0.5 else (1, rng.getrandbits(40), rng.getrandbits(30))


def any_data(rng: random.Random) -> DataRecord:
    """A record as it goes over a link."""
    kind = rng.choice(RECORDS)
    places = tuple(any_place(rng) for _ in range(rng.randrange(3)))
    times = [rng.getrandbits(40) for _ in range(5)]
    if kind is Infer:
        grant = None if rng.random() < 0.5 else (2, 64, 4096)
        return Infer(rng.getrandbits(62), rng.randbytes(9), rng.getrandbits(62), grant, places)
    if kind is InferWithRegions:
        regions = tuple(any_record(DeviceRegion, rng) for _ in range(rng.randrange(3)))
        return InferWithRegions(rng.getrandbits(62), rng.randbytes(9), rng.getrandbits(62), None, places, regions)
    if kind is InferReply and rng.random() < 0.5:
        return InferReply(rng.getrandbits(62), "", "", rng.randbytes(9), places, 0, *times)
    if kind is InferReply:
        return InferReply(rng.getrandbits(62), "inference_failed", "té", b"", (), rng.getrandbits(30), *times)
    if kind is ResponsePart:
        sequence, need = rng.getrandbits(30), rng.choice((0, 9))
        signature, outputs = (b"", ()) if need else (rng.randbytes(9), places)
        infer_ns, output_ns = times[:2]
        number = rng.getrandbits(62)
        return ResponsePart(number, "", "", signature, outputs, need, 0, 0, infer_ns, output_ns, sequence=sequence)
    if kind is CallModel:
        parents = tuple(rng.getrandbits(62) for _ in range(rng.randrange(3)))
        named = ("other", "1", rng.getrandbits(62), rng.randbytes(9), rng.getrandbits(40))
        return CallModel(rng.getrandbits(30), parents, rng.random() < 0.5, rng.random() < 0.5, *named, places)
    if kind is CallInputs:
        return CallInputs(rng.getrandbits(30), places)
    if kind is CallReply:
        return CallReply(rng.getrandbits(30), "", "té", rng.random() < 0.5, rng.randbytes(9), places)
    return any_record(kind, rng)  # type: ignore[no-any-return] # of that kind


def any_frame(rng: random.Random) -> list[DataRecord]:
    return [any_data(rng) for _ in range(rng.randrange(1, 5))]


def test_each_data_record_round_trips() -> None:
    rng = random.Random(1)
    for _ in range(600):
        frame = any_frame(rng)
        assert unpack_frame(pack_frame(frame)) == frame


def test_a_memoryview_is_received_as_bytes() -> None:
    (reply,) = unpack_frame(pack_frame([InferReply(1, signature=b"w", locations=(memoryview(b"abc"),))]))
    assert reply.locations == (b"abc",)


def test_signatures_round_trip_and_equal_ones_have_equal_bytes() -> None:
    rng = random.Random(3)
    for _ in range(100):
        form, outline = any_record(InferSignature, rng), any_record(ReplySignature, rng)
        assert unpack_infer_signature(pack_signature(form)) == form
        assert unpack_reply_signature(pack_signature(outline)) == outline
        assert pack_signature(form) == encode(form)
        assert pack_signature(outline) == encode(outline)
        with pytest.raises(WireError):
            unpack_infer_signature(pack_signature(outline))


def test_a_frame_holds_as_many_records_as_fit_and_at_least_one() -> None:
    drops = [Cancel(number) for number in range(3 * FRAME_RECORDS)]
    frame, count = pack_limited(drops, 1 << 20)
    assert count == FRAME_RECORDS
    assert unpack_frame(frame) == drops[:count]
    large: list[DataRecord] = [InferReply(1, signature=b"w", locations=(bytes(1000),)) for _ in range(40)]
    frame, count = pack_limited(large, 8192)
    assert 1 < count < 9
    assert len(frame) <= 8192
    assert pack_limited(large, 10)[1] == 1


def test_packed_records_are_joined_to_the_same_frames() -> None:
    drops = [Cancel(number) for number in range(3 * FRAME_RECORDS)]
    large: list[DataRecord] = [InferReply(1, signature=b"w", locations=(bytes(1000),)) for _ in range(40)]
    for records in (drops, drops[:1], drops[:16], large):
        packed = [pack_record(each) for each in records]
        for limit in (1 << 20, 8192, 10):
            assert join_records(packed, limit) == pack_limited(records, limit)


@pytest.mark.parametrize("sizes", [(), (0,), (64,), (255, 256), (4096, 0, 1), (1,) * 64])
def test_an_infer_is_its_constant_parts_its_numbers_and_its_inputs(sizes: tuple[int, ...]) -> None:
    number, deadline_ns = (1 << 62) + 7, 1 << 61
    inputs = tuple(bytes([index]) * size for index, size in enumerate(sizes))
    before, between, *headers = infer_record_parts(b"signature", sizes)
    record = before + number.to_bytes(8, "big") + between + deadline_ns.to_bytes(8, "big")
    record += b"".join(header + data for header, data in zip(headers, inputs, strict=True)) if sizes else headers[0]
    assert unpack_frame(b"\x91" + record) == [Infer(number, b"signature", deadline_ns, None, inputs)]


@pytest.mark.parametrize(
    "raw",
    [
        [0, 1, b"w", 5],
        [0, "1", b"w", 5, None],
        [0, 1, "w", 5, None],
        [0, 1, b"w", 5, [1, 2]],
        [0, 1, b"w", 5, None, [1, 2, "3"]],
        [0, 1, b"w", 5, None, "text"],
        [0, 1, b"w", 5, None, 7],
        [3, 1, b"", 1, 1, 1, 1, 1],
        [3, 1, b"w", 1, 1, 1, 1],
        [3, True, b"w", 1, 1, 1, 1, 1],
        [4, 1, "code", "text", 0, 1, 1, 1, 1],
        [4, 1, b"code", "text", 0, 1, 1, 1, 1, 1],
        [4, 1, "code", "text", 0, 1, 1, 1, 1, 1.0],
        [7, 1],
        [],
        5,
    ],
)
def test_a_record_of_another_shape_is_refused(raw: Any) -> None:
    with pytest.raises(WireError):
        unpack_frame(msgpack.packb([raw]))


def test_truncated_and_random_bytes_raise_a_wire_error_and_nothing_else() -> None:
    rng = random.Random(2)
    for _ in range(3000):
        good = pack_frame(any_frame(rng))
        choice = rng.random()
        if choice < 0.3:
            bad = good[: rng.randrange(len(good))]
        elif choice < 0.6:
            bad = rng.randbytes(rng.randrange(64))
        else:
            at = rng.randrange(len(good))
            bad = good[:at] + rng.randbytes(1) + good[at + 1 :]
        with contextlib.suppress(WireError):
            unpack_frame(bad)
        with contextlib.suppress(WireError):
            decode(bad, ALL)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        [1],
        ["Stop", 1],
        ["Nonsense"],
        ["Pong", True],
        ["Pong", "1"],
        ["Pong", 1.0],
        ["Attach", 1, "text, not bytes"],
        ["Extent", 1, 2, 3],
    ],
)
def test_a_message_of_another_shape_is_refused(raw: Any) -> None:
    with pytest.raises(WireError):
        decode(msgpack.packb(raw), ALL)


def test_a_message_that_is_not_expected_here_is_refused() -> None:
    with pytest.raises(WireError, match="not expected"):
        decode(encode(StopWorker()), TO_GATEWAY)


@pytest.mark.parametrize("bad", [b"\xc7\x00\x05", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"])
def test_ext_types_deep_nesting_and_false_lengths_are_refused(bad: bytes) -> None:
    with pytest.raises(WireError):
        unpack_frame(bad)
