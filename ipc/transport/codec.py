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

from mmsup.ipc.messages.data import WORDS, Drop, Extent, Form, Grant, Infer, Outline, Release, Reply
from mmsup.ipc.transport.dataclass_codec import Check, WireError, from_plain, record, to_plain


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


def pack_words(words: Form | Outline) -> bytes:
    """The words as bytes. By hand, since a request in JSON has new ones each time: 1.5 µs, `encode` takes ten."""
    tensors = [
        (each.name, each.datatype, each.shape, each.optional)
        for each in (words.inputs if isinstance(words, Form) else words.outputs)
    ]
    if isinstance(words, Form):
        return cast(
            "bytes", _packer.pack(("Form", tensors, words.outputs, words.parameters, words.priority, words.alone))
        )
    return cast("bytes", _packer.pack(("Outline", tensors)))


def unpack_form(data: bytes) -> Form:
    """The words of an Infer; WireError if they are none."""
    return cast("Form", decode(data, WORDS[:1]))


def unpack_outline(data: bytes) -> Outline:
    """The words of a Reply; WireError if they are none."""
    return cast("Outline", decode(data, WORDS[1:]))


# Data frames. Packed by hand: this runs for every request.

_INFER, _GRANT, _DROP, _RESULT, _REPLY, _EXTENT, _RELEASE = range(7)
Record = Infer | Grant | Drop | Reply | Extent | Release
_TIMES: Final = 5
FRAME_RECORDS: Final = 64
"""Records a frame at most: what the other side does between two looks at its socket."""


def _infer_out(record: Infer) -> tuple[object, ...]:
    return (_INFER, record.id, record.words, record.deadline_ns, record.grant, *record.places)


def _reply_out(record: Reply) -> tuple[object, ...]:
    times = (record.queue_ns, record.input_ns, record.infer_ns, record.output_ns, record.batch)
    if record.words:
        return (_RESULT, record.id, record.words, *times, *record.places)
    return (_REPLY, record.id, record.code, record.text, record.need, *times)


_OUT: Final[dict[type, Callable[[Any], tuple[object, ...]]]] = {  # each takes its own kind of record
    Infer: _infer_out,
    Reply: _reply_out,
    Grant: lambda record: (_GRANT, record.id, record.segment, record.offset, record.size),
    Drop: lambda record: (_DROP, record.id),
    Extent: lambda record: (_EXTENT, record.segment, record.size, record.writable),
    Release: lambda record: (_RELEASE, record.segment),
}


def pack_frame(records: Sequence[Record]) -> bytes:
    """All that one loop turn has to say to one peer, in one frame."""
    return cast("bytes", _packer.pack([_OUT[type(each)](each) for each in records]))


def pack_some(records: Sequence[Record], limit_bytes: int) -> tuple[bytes, int]:
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


def _places(raw: list[Any]) -> tuple[Any, ...]:  # values of a record; each a Place in the end
    return tuple([each if _type(each) is bytes else _triple(each) for each in raw])


def _triple(raw: Any) -> tuple[int, int, int]:  # one value of a record
    segment, offset, size = raw
    if not (_type(raw) is list and _type(segment) is int and _type(offset) is int and _type(size) is int):
        raise WireError("a place is bytes, or segment, offset and size")
    return segment, offset, size


def _infer_in(raw: list[Any]) -> Infer:  # checked here, by hand: `record` takes several times as long
    _, number, words, deadline, grant, *places = raw
    if not (_type(number) is int and _type(words) is bytes and _type(deadline) is int):
        raise WireError("Infer: a field of another type")
    inline = _ALL_INLINE.issuperset(map(_type, places))
    return Infer(
        number, words, deadline, None if grant is None else _triple(grant), tuple(places) if inline else _places(places)
    )


def _result_in(raw: list[Any]) -> Reply:  # by hand, as above; a worker is not trusted, so nothing is left out
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
    found = tuple(places) if _ALL_INLINE.issuperset(map(_type, places)) else _places(places)
    return Reply(number, "", "", words, found, 0, queue_ns, input_ns, infer_ns, output_ns, batch)


def _reply_in(raw: list[Any]) -> Reply:
    _, number, code, text, need, *times = raw
    if not (_type(code) is str and _type(text) is str and len(times) == _TIMES):
        raise WireError("Reply: a field of another type")
    for each in (number, need, *times):
        if _type(each) is not int:
            raise WireError("Reply: a field of another type")
    return Reply(number, code, text, b"", (), need, *times)


def _checked(kind: type[Any]) -> Check:
    read = record(kind)
    return lambda raw: read(raw[1:])


_KINDS: Final[dict[int, Check]] = {
    _INFER: _infer_in,
    _GRANT: _checked(Grant),
    _DROP: _checked(Drop),
    _RESULT: _result_in,
    _REPLY: _reply_in,
    _EXTENT: _checked(Extent),
    _RELEASE: _checked(Release),
}


def unpack_frame(data: bytes | memoryview) -> list[Any]:  # Records, each checked; their kind is the caller's to see
    """The records of a frame; WireError for anything else, as a whole."""
    raw = _unpack(data)
    try:
        return [_KINDS[each[0]](each) for each in raw]
    except (ValueError, TypeError, LookupError) as error:
        raise WireError(f"not a list of records: {type(error).__name__}") from error
