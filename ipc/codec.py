"""Messages as bytes and back, by msgpack.

Covers: control messages (`encode`, `decode`) and data frames (`pack_frame`, `unpack_frame`, hot).
Does not cover: sockets; what a message means; its shape (records.py).

A data frame is a list of records `[kind, field, …]`, all that one loop turn has to say to one peer. Ext types are
refused, lengths and nesting are bounded by msgpack itself. Nothing here can run code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import msgpack

from mmsup.ipc.messages import Drop, Grant, Infer, Reply, Tensor
from mmsup.ipc.records import Check, WireError, from_plain, record, to_plain


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


# Data frames. Packed by hand: this runs for every request.

_INFER, _GRANT, _DROP, _REPLY = range(4)
Record = Infer | Grant | Drop | Reply
_packer: Final = msgpack.Packer(autoreset=True)


def _tensor_out(tensor: Tensor) -> tuple[object, ...]:
    return (
        tensor.name,
        tensor.datatype,
        tensor.shape,
        tensor.segment,
        tensor.offset,
        tensor.size,
        tensor.data,
    )


def _infer_out(record: Infer) -> tuple[object, ...]:
    return (
        _INFER,
        record.id,
        [_tensor_out(each) for each in record.inputs],
        record.outputs,
        record.grant_segment,
        record.grant_offset,
        record.grant_size,
        record.deadline_ns,
        record.parameters,
        record.priority,
    )


def _reply_out(record: Reply) -> tuple[object, ...]:
    return (
        _REPLY,
        record.id,
        record.code,
        record.text,
        [_tensor_out(each) for each in record.outputs],
        record.need,
        record.queue_ns,
        record.input_ns,
        record.infer_ns,
        record.output_ns,
        record.batch,
    )


_OUT: Final[dict[type, Callable[[Any], tuple[object, ...]]]] = {  # each takes its own kind of record
    Infer: _infer_out,
    Reply: _reply_out,
    Grant: lambda record: (_GRANT, record.id, record.segment, record.offset, record.size),
    Drop: lambda record: (_DROP, record.id),
}


def pack_frame(records: Sequence[Record]) -> bytes:
    """All that one loop turn has to say to one peer, in one frame."""
    return cast("bytes", _packer.pack([_OUT[type(each)](each) for each in records]))


_type: Any = type  # checked by this name a value stays unknown to the checkers, which is what it is


def _tensor_in(raw: Any) -> Tensor:  # one value of a record's list of tensors
    name, datatype, shape, segment, offset, size, data = raw
    if not (
        _type(name) is str
        and _type(datatype) is str
        and _type(shape) is list
        and _type(segment) is int
        and _type(offset) is int
        and _type(size) is int
        and (data is None or _type(data) is bytes)
    ):
        raise WireError("Tensor: a field of another type")
    for each in shape:
        if _type(each) is not int:
            raise WireError("Tensor: a shape is of integers")
    return Tensor(name, datatype, tuple(shape), segment, offset, size, data)


def _infer_in(raw: list[Any]) -> Infer:  # checked here, by hand: `record` takes several times as long
    _, number, inputs, outputs, segment, offset, size, deadline, parameters, priority = raw
    if not (
        _type(number) is int
        and _type(inputs) is list
        and _type(outputs) is list
        and _type(segment) is int
        and _type(offset) is int
        and _type(size) is int
        and _type(deadline) is int
        and _type(parameters) is dict
        and _type(priority) is int
    ):
        raise WireError("Infer: a field of another type")
    for each in outputs:
        if _type(each) is not str:
            raise WireError("Infer: an output is a name")
    tensors = tuple([_tensor_in(each) for each in inputs])
    names = tuple(outputs)
    return Infer(number, tensors, names, segment, offset, size, deadline, parameters, priority)


def _reply_in(raw: list[Any]) -> Reply:  # by hand, as above; a worker is not trusted, so nothing is left out
    _, number, code, text, outputs, need, queue_ns, input_ns, infer_ns, output_ns, batch = raw
    if not (
        _type(number) is int
        and _type(code) is str
        and _type(text) is str
        and _type(outputs) is list
        and _type(need) is int
        and _type(queue_ns) is int
        and _type(input_ns) is int
        and _type(infer_ns) is int
        and _type(output_ns) is int
        and _type(batch) is int
    ):
        raise WireError("Reply: a field of another type")
    tensors = tuple([_tensor_in(each) for each in outputs])
    return Reply(number, code, text, tensors, need, queue_ns, input_ns, infer_ns, output_ns, batch)


def _checked(kind: type[Any]) -> Check:
    read = record(kind)
    return lambda raw: read(raw[1:])


_KINDS: Final[dict[int, Check]] = {
    _INFER: _infer_in,
    _GRANT: _checked(Grant),
    _DROP: _checked(Drop),
    _REPLY: _reply_in,
}


def unpack_frame(data: bytes | memoryview) -> list[Record]:
    """The records of a frame; WireError for anything else, as a whole."""
    raw = _unpack(data)
    try:
        return [_KINDS[each[0]](each) for each in raw]
    except (ValueError, TypeError, LookupError) as error:
        raise WireError(f"not a list of records: {type(error).__name__}") from error
