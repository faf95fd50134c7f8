"""Encoding of messages as msgpack: control messages, and data frames between gateways and workers.

Covers: control messages (`encode`, `decode`), data frames (`pack_frame`, `unpack_frame`; hot), signatures.
A frame can also be read in two steps: `unpack_records` gives the records as msgpack has them, for who knows the bytes
in them already, and `read_records` makes messages of them.
Does not cover: sockets; the meaning of a message; its conversion from and to a dataclass (dataclass_codec.py).

A data frame is a list of records `[kind, field, ...]`: everything that one event-loop iteration sends to one peer. The
part that a request or result shares with others is a signature, packed once and compared by its bytes. Ext types are
refused; msgpack itself bounds lengths and nesting. Nothing here can execute code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import msgpack

from mmsup.ipc.messages.calls import CallInputs, CallModel, CallReply, EndCall, GrantCall
from mmsup.ipc.messages.data import (
    AttachExtent,
    Cancel,
    DetachExtent,
    DeviceRegion,
    EndSequence,
    ForgetHandle,
    GrantBuffer,
    Infer,
    InferReply,
    InferSignature,
    InferWithRegions,
    ReplySignature,
    ResponsePart,
    StreamCredit,
)
from mmsup.ipc.transport.dataclass_codec import Decoder, WireError, from_plain, record_decoder, to_plain


def _refuse_ext(code: int, data: bytes) -> object:
    raise WireError(f"ext type {code} with {len(data)} bytes")


def _unpack(data: bytes | memoryview) -> Any:  # any msgpack value
    try:
        return msgpack.unpackb(data, use_list=True, strict_map_key=True, ext_hook=_refuse_ext)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {type(error).__name__}") from error


def encode(message: object) -> bytes:
    return cast("bytes", msgpack.packb(to_plain(message)))


def decode(data: bytes | memoryview, expected: Iterable[type[Any]]) -> Any:  # one of `expected`; callers match on it
    """The control message in `data`; WireError if it is none of `expected`."""
    return from_plain(_unpack(data), expected)


_packer: Final = msgpack.Packer(autoreset=True)
_UINT64: Final = b"\xcf"
"""Before 8 bytes of an integer."""


def pack_signature(signature: InferSignature | ReplySignature) -> bytes:
    """By hand, because each JSON request may have another one: 1.5 µs, where `encode` takes 10 µs."""
    tensors = [
        (each.name, each.datatype, each.shape, each.optional)
        for each in (signature.inputs if isinstance(signature, InferSignature) else signature.outputs)
    ]
    if isinstance(signature, InferSignature):
        rest = (signature.outputs, signature.parameters, signature.priority, signature.runs_alone)
        return cast("bytes", _packer.pack(("InferSignature", tensors, *rest)))
    return cast("bytes", _packer.pack(("ReplySignature", tensors)))


def unpack_infer_signature(data: bytes) -> InferSignature:
    """The signature of an Infer; WireError if it is none."""
    return cast("InferSignature", decode(data, (InferSignature,)))


def unpack_reply_signature(data: bytes) -> ReplySignature:
    """The signature of an InferReply; WireError if it is none."""
    return cast("ReplySignature", decode(data, (ReplySignature,)))


# Data frames, packed by hand: this runs for every request.

INFER: Final = 0
RESULT: Final = 3
PART: Final = 7
_GRANT, _CANCEL, _REPLY, _ATTACH, _DETACH, _CREDIT, _END_SEQUENCE = 1, 2, 4, 5, 6, 8, 9
_INFER_WITH_REGIONS, _FORGET_HANDLE = 10, 11
_EXTENT_KINDS: Final = (_ATTACH, _DETACH)
_CALL, _CALL_INPUTS, _END_CALL, _GRANT_CALL, _CALL_REPLY = 20, 21, 22, 23, 24
CallRecord = CallModel | CallInputs | EndCall | GrantCall | CallReply
GatewayRecord = Infer | GrantBuffer | Cancel | EndSequence | ForgetHandle | StreamCredit | AttachExtent | DetachExtent
DataRecord = GatewayRecord | InferReply | ResponsePart | CallRecord
RESULT_FIELDS: Final = (int, int, bytes, *(int,) * 6)
"""Types of the fields of a result, as `_unpack_result` checks them: kind, id, signature, times, batch, rows. Then
follow the locations of its outputs."""
_TIMES: Final = 6
FRAME_RECORDS: Final = 64
"""Most records of a frame: what the receiver processes between two reads of its socket."""
_FRAME_HEADS: Final[list[bytes]] = [_packer.pack_array_header(count) for count in range(FRAME_RECORDS + 1)]


def _pack_infer(record: Infer) -> tuple[object, ...]:
    return (INFER, record.id, record.signature, record.deadline_ns, record.output_buffer, *record.locations)


def _pack_with_regions(record: InferWithRegions) -> tuple[object, ...]:
    regions = [
        (each.place, each.tensor, each.region, each.number, each.device, each.handle, each.offset, each.size)
        for each in record.regions
    ]
    return (_INFER_WITH_REGIONS, regions, *_pack_infer(record)[1:])


def _pack_reply(record: InferReply) -> tuple[object, ...]:
    times = (record.queue_ns, record.input_ns, record.infer_ns, record.output_ns, record.batch, record.rows)
    if record.signature:
        return (RESULT, record.id, record.signature, *times, *record.locations)
    return (_REPLY, record.id, record.code, record.text, record.needed_bytes, *times)


def _pack_call(record: CallModel) -> tuple[object, ...]:
    named = (record.model, record.version, record.deadline_ns, record.signature, record.needed_bytes)
    return (_CALL, record.id, record.parents, record.is_shared, record.blocks, *named, *record.locations)


_PACKERS: Final[dict[type, Callable[[Any], tuple[object, ...]]]] = {  # each takes its own class of record
    Infer: _pack_infer,
    InferWithRegions: _pack_with_regions,
    ForgetHandle: lambda record: (_FORGET_HANDLE, record.handle),
    InferReply: _pack_reply,
    GrantBuffer: lambda record: (_GRANT, record.id, record.segment, record.offset, record.size),
    Cancel: lambda record: (_CANCEL, record.id),
    EndSequence: lambda record: (_END_SEQUENCE, record.number, record.text),
    ResponsePart: lambda record: (
        PART,
        record.id,
        record.sequence,
        record.signature,
        record.needed_bytes,
        record.infer_ns,
        record.output_ns,
        *record.locations,
    ),
    StreamCredit: lambda record: (_CREDIT, record.id, record.taken),
    AttachExtent: lambda record: (_ATTACH, record.segment, record.size, record.writable),
    DetachExtent: lambda record: (_DETACH, record.segment),
    CallModel: _pack_call,
    CallInputs: lambda record: (_CALL_INPUTS, record.id, *record.locations),
    EndCall: lambda record: (_END_CALL, record.id),
    GrantCall: lambda record: (_GRANT_CALL, record.id, record.segment, record.offset, record.size),
    CallReply: lambda record: (
        *(_CALL_REPLY, record.id, record.code, record.text, record.retryable, record.signature),
        *record.locations,
    ),
}


def plain_record(record: DataRecord) -> tuple[object, ...]:
    """The fields of a record in the order in which they are packed."""
    return _PACKERS[type(record)](record)


def pack_record(record: DataRecord) -> bytes:
    return cast("bytes", _packer.pack(_PACKERS[type(record)](record)))


def pack_frame(records: Sequence[DataRecord]) -> bytes:
    return cast("bytes", _packer.pack([_PACKERS[type(each)](each) for each in records]))


def join_records(records: Sequence[bytes], limit_bytes: int) -> tuple[bytes, int]:
    """A frame of the first of these packed records, and their number: as `pack_limited`."""
    count = len(records)
    if count > FRAME_RECORDS:
        count, records = FRAME_RECORDS, records[:FRAME_RECORDS]
    frame = b"".join((_FRAME_HEADS[count], *records))
    while len(frame) > limit_bytes and count > 1:
        count = count // 2
        frame = b"".join((_FRAME_HEADS[count], *records[:count]))
    return frame, count


def infer_record_parts(signature: bytes, sizes: Sequence[int]) -> tuple[bytes, ...]:
    """The constant bytes of a packed Infer with inline inputs of these sizes and no output buffer: before its id,
    before its deadline (both are 8 bytes, big-endian) and before each input."""
    after_deadline = cast("bytes", _packer.pack(None))
    headers = [_bytes_header(size) for size in sizes]
    return (
        _packer.pack_array_header(5 + len(sizes)) + _packer.pack(INFER) + _UINT64,
        cast("bytes", _packer.pack(signature)) + _UINT64,
        after_deadline + headers[0] if headers else after_deadline,
        *headers[1:],
    )


def _bytes_header(size: int) -> bytes:
    return cast("bytes", _packer.pack(bytes(size)))[: -size or None]


def pack_limited(records: Sequence[DataRecord], limit_bytes: int) -> tuple[bytes, int]:
    """A frame of the first records, and their number: at least one, otherwise as many as fit into the limit."""
    return pack_records([plain_record(each) for each in records[:FRAME_RECORDS]], limit_bytes)


def pack_records(records: Sequence[Sequence[object]], limit_bytes: int) -> tuple[bytes, int]:
    """The same for records that are plain already."""
    count = len(records)
    if count > FRAME_RECORDS:
        count, records = FRAME_RECORDS, records[:FRAME_RECORDS]
    frame: bytes = _packer.pack(records)
    while len(frame) > limit_bytes and count > 1:
        count = count // 2
        frame = _packer.pack(records[:count])
    return frame, count


_type: Any = type  # under this name a checked value stays Any for the type checkers
_ALL_INLINE: Final = frozenset({bytes})


def _tensor_locations(raw: list[Any]) -> tuple[Any, ...]:  # values of a record; each becomes a TensorLocation
    return tuple([each if _type(each) is bytes else _arena_location(each) for each in raw])


def _arena_location(raw: Any) -> tuple[int, int, int]:  # one value of a record
    segment, offset, size = raw
    if not (_type(raw) is list and _type(segment) is int and _type(offset) is int and _type(size) is int):
        raise WireError("a location is bytes, or segment, offset and size")
    return segment, offset, size


def _unpack_infer(raw: list[Any]) -> Infer:  # checked by hand: `record_decoder` takes several times as long
    _, number, signature, deadline, buffer, *locations = raw
    if not (_type(number) is int and _type(signature) is bytes and _type(deadline) is int):
        raise WireError("Infer: a field of another type")
    is_inline = _ALL_INLINE.issuperset(map(_type, locations))
    return Infer(
        number,
        signature,
        deadline,
        None if buffer is None else _arena_location(buffer),
        tuple(locations) if is_inline else _tensor_locations(locations),
    )


def _unpack_with_regions(raw: list[Any]) -> InferWithRegions:
    _, regions, *rest = raw
    read, plain = record_decoder(DeviceRegion), _unpack_infer([INFER, *rest])
    found = tuple([read(each) for each in regions])
    return InferWithRegions(plain.id, plain.signature, plain.deadline_ns, plain.output_buffer, plain.locations, found)


def _unpack_result(raw: list[Any]) -> InferReply:  # as above; workers are not trusted: every field is checked
    _, number, signature, queue_ns, input_ns, infer_ns, output_ns, batch, rows, *locations = raw
    if not (
        _type(number) is int
        and _type(signature) is bytes
        and signature
        and _type(queue_ns) is int
        and _type(input_ns) is int
        and _type(infer_ns) is int
        and _type(output_ns) is int
        and _type(batch) is int
        and _type(rows) is int
    ):
        raise WireError("Reply: a field of another type")
    found = tuple(locations) if _ALL_INLINE.issuperset(map(_type, locations)) else _tensor_locations(locations)
    return InferReply(number, "", "", signature, found, 0, queue_ns, input_ns, infer_ns, output_ns, batch, rows)


def _unpack_reply(raw: list[Any]) -> InferReply:
    _, number, code, text, need, *times = raw
    are_numbers = all(_type(each) is int for each in (number, need, *times))
    if not (are_numbers and _type(code) is str and _type(text) is str and len(times) == _TIMES):
        raise WireError("Reply: a field of another type")
    return InferReply(number, code, text, b"", (), need, *times)


def _unpack_part(raw: list[Any]) -> ResponsePart:  # as `_unpack_result`
    _, number, sequence, signature, need, infer_ns, output_ns, *locations = raw
    are_numbers = all(_type(each) is int for each in (number, sequence, need, infer_ns, output_ns))
    if not (are_numbers and _type(signature) is bytes) or bool(signature) == bool(need):
        raise WireError("ResponsePart: a field of another type")
    found = _tensor_locations(locations)
    return ResponsePart(number, "", "", signature, found, need, 0, 0, infer_ns, output_ns, 1, 1, sequence)


def _unpack_checked(kind: type[Any]) -> Decoder:
    read = record_decoder(kind)
    return lambda raw: read(raw[1:])


def _unpack_located(kind: Callable[..., CallRecord], *types: type[Any]) -> Decoder:
    """Of a record with fields of these types, after which its locations follow; a list holds numbers."""
    count = len(types) + 1

    def read(raw: list[Any]) -> CallRecord:
        fields, locations = raw[1:count], raw[count:]
        if [*map(_type, fields)] != [*types] or any(
            type(each) is list and {*map(_type, each)} - {int} for each in fields
        ):
            raise WireError("a call: a field of another type")
        return kind(*[tuple(each) if type(each) is list else each for each in fields], _tensor_locations(locations))

    return read


_UNPACKERS: Final[dict[int, Decoder]] = {
    INFER: _unpack_infer,
    _INFER_WITH_REGIONS: _unpack_with_regions,
    _FORGET_HANDLE: _unpack_checked(ForgetHandle),
    _GRANT: _unpack_checked(GrantBuffer),
    _CANCEL: _unpack_checked(Cancel),
    _END_SEQUENCE: _unpack_checked(EndSequence),
    RESULT: _unpack_result,
    _REPLY: _unpack_reply,
    _ATTACH: _unpack_checked(AttachExtent),
    _DETACH: _unpack_checked(DetachExtent),
    _CALL: _unpack_located(CallModel, int, list, bool, bool, str, str, int, bytes, int),
    _CALL_INPUTS: _unpack_located(CallInputs, int),
    _END_CALL: _unpack_checked(EndCall),
    _GRANT_CALL: _unpack_checked(GrantCall),
    _CALL_REPLY: _unpack_located(CallReply, int, str, str, bool, bytes),
    PART: _unpack_part,
    _CREDIT: _unpack_checked(StreamCredit),
}


def unpack_records(data: bytes | memoryview) -> list[Any]:  # values of msgpack
    """The records of a frame as msgpack has them, none of them checked; WireError if it is no list of records."""
    try:  # as in `_unpack`
        raw = msgpack.unpackb(data, use_list=True, strict_map_key=True, ext_hook=_refuse_ext)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError(f"not msgpack: {type(error).__name__}") from error
    if type(raw) is not list:
        raise WireError(f"not a list of records: {type(raw).__name__}")
    if len(raw) > FRAME_RECORDS:
        raise WireError(f"more than {FRAME_RECORDS} records")
    return raw


def read_records(records: list[Any]) -> list[Any]:  # DataRecords; the caller checks their class
    """The messages in records of `unpack_records`; WireError if any of them is invalid."""
    try:
        return [_UNPACKERS[each[0]](each) for each in records]
    except (ValueError, TypeError, LookupError) as error:
        raise WireError(f"not a list of records: {type(error).__name__}") from error


def is_about_extents(records: list[Any]) -> bool:  # of `unpack_records`
    """Whether the first of these records attaches or detaches an extent."""
    first = records[0] if records else None
    return type(first) is list and bool(first) and first[0] in _EXTENT_KINDS


def is_about_calls(record: Any) -> bool:  # of `unpack_records`
    """Whether this record is a gateway's word on a call of the worker's own."""
    return type(record) is list and bool(record) and record[0] in (_GRANT_CALL, _CALL_REPLY)


def unpack_frame(data: bytes | memoryview) -> list[Any]:  # DataRecords; the caller checks their class
    """The messages of a frame; WireError if any of it is invalid."""
    return read_records(unpack_records(data))
