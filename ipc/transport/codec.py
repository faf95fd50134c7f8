"""Messages as bytes and back, by msgpack.

Covers: control messages (`encode`, `decode`), data frames (`pack_frame`, `unpack_frame`, hot), words (`pack_words`).
Does not cover: sockets; what a message means; its shape (records.py).

A data frame is a list of records `[kind, field, …]`, all that one loop turn has to say to one peer. Of a request and of
its result only what differs from the last one is packed and checked each time; the rest are words, known by their
bytes. Ext types are refused, lengths and nesting are bounded by msgpack itself. Nothing here can run code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import msgpack

from mmsup.ipc.messages.data import (
    SIGNATURES,
    AttachExtent,
    Cancel,
    DetachExtent,
    GrantBuffer,
    Infer,
    InferReply,
    InferSignature,
    ReplySignature,
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
    """One control message as bytes."""
    return cast("bytes", msgpack.packb(to_plain(message)))


def decode(data: bytes | memoryview, expected: Iterable[type[Any]]) -> Any:  # one of `expected`; callers match on it
    """The control message in `data`, which must be one of `expected`."""
    return from_plain(_unpack(data), expected)


_packer: Final = msgpack.Packer(autoreset=True)

# Words: what many records have in common.


def pack_signature(signature: InferSignature | ReplySignature) -> bytes:
    """The words as bytes. By hand, since a request in JSON has new ones each time: 1.5 µs, `encode` takes ten."""
    tensors = [
        (each.name, each.datatype, each.shape, each.optional)
        for each in (signature.inputs if isinstance(signature, InferSignature) else signature.outputs)
    ]
    if isinstance(signature, InferSignature):
        return cast(
            "bytes",
            _packer.pack(
                (
                    "InferSignature",
                    tensors,
                    signature.outputs,
                    signature.parameters,
                    signature.priority,
                    signature.runs_alone,
                )
            ),
        )
    return cast("bytes", _packer.pack(("ReplySignature", tensors)))


def unpack_infer_signature(data: bytes) -> InferSignature:
    """The words of an Infer; WireError if they are none."""
    return cast("InferSignature", decode(data, SIGNATURES[:1]))


def unpack_reply_signature(data: bytes) -> ReplySignature:
    """The words of a Reply; WireError if they are none."""
    return cast("ReplySignature", decode(data, SIGNATURES[1:]))


# Data frames. Packed by hand: this runs for every request.

_INFER, _GRANT, _DROP, _RESULT, _REPLY, _EXTENT, _RELEASE = range(7)
DataRecord = Infer | GrantBuffer | Cancel | InferReply | AttachExtent | DetachExtent
_TIMES: Final = 5
FRAME_RECORDS: Final = 64
"""Records a frame at most: what the other side does between two looks at its socket."""


def _pack_infer(record: Infer) -> tuple[object, ...]:
    return (_INFER, record.id, record.signature, record.deadline_ns, record.output_buffer, *record.locations)


def _pack_reply(record: InferReply) -> tuple[object, ...]:
    times = (record.queue_ns, record.input_ns, record.infer_ns, record.output_ns, record.batch)
    if record.signature:
        return (_RESULT, record.id, record.signature, *times, *record.locations)
    return (_REPLY, record.id, record.code, record.text, record.needed_bytes, *times)


_PACKERS: Final[dict[type, Callable[[Any], tuple[object, ...]]]] = {  # each takes its own kind of record
    Infer: _pack_infer,
    InferReply: _pack_reply,
    GrantBuffer: lambda record: (_GRANT, record.id, record.segment, record.offset, record.size),
    Cancel: lambda record: (_DROP, record.id),
    AttachExtent: lambda record: (_EXTENT, record.segment, record.size, record.writable),
    DetachExtent: lambda record: (_RELEASE, record.segment),
}


def pack_frame(records: Sequence[DataRecord]) -> bytes:
    """All that one loop turn has to say to one peer, in one frame."""
    return cast("bytes", _packer.pack([_PACKERS[type(each)](each) for each in records]))


def pack_limited(records: Sequence[DataRecord], limit_bytes: int) -> tuple[bytes, int]:
    """A frame of the first of these records, and how many: one at least, as many as the limit lets."""
    count = len(records)
    if count > FRAME_RECORDS:
        count, records = FRAME_RECORDS, records[:FRAME_RECORDS]
    frame = pack_frame(records)
    while len(frame) > limit_bytes and count > 1:
        count = count // 2
        frame = pack_frame(records[:count])
    return frame, count


_type: Any = type  # checked by this name a value stays unknown to the checkers, which is what it is


_ALL_INLINE: Final = frozenset({bytes})


def _tensor_locations(raw: list[Any]) -> tuple[Any, ...]:  # values of a record; each a Place in the end
    return tuple([each if _type(each) is bytes else _arena_location(each) for each in raw])


def _arena_location(raw: Any) -> tuple[int, int, int]:  # one value of a record
    segment, offset, size = raw
    if not (_type(raw) is list and _type(segment) is int and _type(offset) is int and _type(size) is int):
        raise WireError("a place is bytes, or segment, offset and size")
    return segment, offset, size


def _unpack_infer(raw: list[Any]) -> Infer:  # checked here, by hand: `record` takes several times as long
    _, number, words, deadline, grant, *places = raw
    if not (_type(number) is int and _type(words) is bytes and _type(deadline) is int):
        raise WireError("Infer: a field of another type")
    inline = _ALL_INLINE.issuperset(map(_type, places))
    return Infer(
        number,
        words,
        deadline,
        None if grant is None else _arena_location(grant),
        tuple(places) if inline else _tensor_locations(places),
    )


def _unpack_result(raw: list[Any]) -> InferReply:  # by hand, as above; a worker is not trusted, so nothing is left out
    _, number, words, queue_ns, input_ns, infer_ns, output_ns, batch, *places = raw
    if not (
        _type(number) is int
        and _type(words) is bytes
        and words
        and _type(queue_ns) is int
        and _type(input_ns) is int
        and _type(infer_ns) is int
        and _type(output_ns) is int
        and _type(batch) is int
    ):
        raise WireError("Reply: a field of another type")
    found = tuple(places) if _ALL_INLINE.issuperset(map(_type, places)) else _tensor_locations(places)
    return InferReply(number, "", "", words, found, 0, queue_ns, input_ns, infer_ns, output_ns, batch)


def _unpack_reply(raw: list[Any]) -> InferReply:
    _, number, code, text, need, *times = raw
    if not (_type(code) is str and _type(text) is str and len(times) == _TIMES):
        raise WireError("Reply: a field of another type")
    for each in (number, need, *times):
        if _type(each) is not int:
            raise WireError("Reply: a field of another type")
    return InferReply(number, code, text, b"", (), need, *times)


def _unpack_checked(kind: type[Any]) -> Decoder:
    read = record_decoder(kind)
    return lambda raw: read(raw[1:])


_UNPACKERS: Final[dict[int, Decoder]] = {
    _INFER: _unpack_infer,
    _GRANT: _unpack_checked(GrantBuffer),
    _DROP: _unpack_checked(Cancel),
    _RESULT: _unpack_result,
    _REPLY: _unpack_reply,
    _EXTENT: _unpack_checked(AttachExtent),
    _RELEASE: _unpack_checked(DetachExtent),
}


def unpack_frame(data: bytes | memoryview) -> list[Any]:  # Records, each checked; their kind is the caller's to see
    """The records of a frame; WireError for anything else, as a whole."""
    raw = _unpack(data)
    try:
        return [_UNPACKERS[each[0]](each) for each in raw]
    except (ValueError, TypeError, LookupError) as error:
        raise WireError(f"not a list of records: {type(error).__name__}") from error
