"""Binary tensor data extension: the layout of a body of JSON and binary tensors, and checks of its sizes. Pure.

    Inference-Header-Content-Length: N    the first N bytes are JSON, then the binary tensors in the order of the JSON
    Inference-Header-Content-Length: 0    a raw request: the body is the data of the only input
    no such header                        the whole body is JSON

The body starts at `BodyLayout.start` of its memory, so that the bytes behind the JSON are aligned for compute kernels.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.errors import CallerError
from mmsup.ipc.memory.allocator import ALIGNMENT
from mmsup.ipc.specs import Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES, element_count

HEADER: Final = "Inference-Header-Content-Length"
HEADER_LIMIT_BYTES: Final = 1 << 20
"""JSON before binary tensors: it describes at most 64 tensors."""
JSON_LIMIT_BYTES: Final = 32 << 20
"""A body of JSON only; parsing takes up to four times as much memory."""
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class BodyLayout:
    """Where the parts of a body of `size` bytes are in its memory."""

    size: int
    header: int
    """Bytes of JSON; 0 for a raw request."""
    start: int
    """Offset of the body."""

    @property
    def space(self) -> int:
        return self.start + self.size

    @property
    def blobs_start(self) -> int:
        return self.start + self.header


def body_layout(header: str | None, size: int) -> BodyLayout:
    """The layout of a body of `size` bytes; CallerError for an invalid header."""
    if header is None:
        if size > JSON_LIMIT_BYTES:
            text = f"JSON of {size} bytes exceeds the maximum allowed {JSON_LIMIT_BYTES} bytes"
            raise CallerError("too_large", f"{text}: send tensors as binary data")
        return BodyLayout(size, size, 0)
    if not _NUMBER.fullmatch(header.strip()):
        raise CallerError("bad_request", f"{HEADER} is '{header:.40}', which is no number of bytes")
    length = int(header)
    if length > size:
        raise CallerError("bad_request", f"{HEADER} is {length}, but the body has {size} bytes")
    if length > HEADER_LIMIT_BYTES:
        raise CallerError("bad_request", f"{HEADER} is {length}, at most {HEADER_LIMIT_BYTES} bytes of JSON are read")
    if length == 0:
        return BodyLayout(size, 0, ALIGNMENT)  # room for a length prefix before the bytes of a string
    return BodyLayout(size, length, -length % ALIGNMENT)


class Blobs:
    """The binary part of a body, taken tensor by tensor."""

    def __init__(self, space: memoryview, at: int, end: int) -> None:
        self._space = space
        self._at = at
        self._end = end
        self._total = end - at

    def take(self, size: int, what: str) -> int:
        """The offset of the next `size` bytes, which belong to `what`."""
        left = self._end - self._at
        if size > left:
            text = f"{what} needs {size} bytes of binary data, but only {left} of {self._total} are left in the body"
            raise CallerError("bad_request", text)
        self._at += size
        return self._at - size

    def view(self, offset: int, size: int) -> memoryview:
        return self._space[offset : offset + size]

    def finish(self, model: str) -> None:
        """CallerError if bytes are left over."""
        left = self._end - self._at
        if left:
            text = f"the inputs for model '{model}' take {self._total - left} bytes of binary data"
            raise CallerError("bad_request", f"{text}, the body has {self._total}", model=model)


def check_strings(data: memoryview, count: int) -> None:
    """ValueError if the bytes are not exactly `count` length-prefixed elements. Copies nothing."""
    at, end, found = 0, len(data), 0
    while at < end:
        if end - at < _LENGTH.size:
            raise ValueError(f"{end - at} bytes are left where a 4-byte length should be")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + length
        found += 1
        if at > end:
            raise ValueError(f"element {found - 1} claims {length} bytes, {length - (at - end)} are left")
    if found != count:
        raise ValueError(f"the shape needs {count} elements, the data has {found}")


def raw_input(model: str, metadata: Metadata, space: memoryview, body: BodyLayout) -> InputTensor:
    """The only input of a raw request; its shape follows from the length of the body."""
    if len(metadata.inputs) != 1:
        text = f"a raw request needs a model with one input, model '{model}' has {len(metadata.inputs)}"
        raise CallerError("bad_request", text, model=model)
    spec = metadata.inputs[0]
    shape = (1, *spec.shape) if metadata.max_batch_size else spec.shape
    if spec.datatype == "BYTES":
        return _raw_string_input(model, spec, shape, space, body)
    fixed = element_count([size for size in shape if size >= 0]) * ITEM_BYTES[spec.datatype]
    open_axes = sum(size < 0 for size in shape)
    if open_axes > 1:
        text = f"a raw request cannot say the shape of input '{spec.name}' of model '{model}'"
        raise CallerError("bad_request", f"{text}: {open_axes} dimensions vary", model=model)
    if (fixed == 0 or body.size % fixed) if open_axes else body.size != fixed:
        kind = "a multiple of " if open_axes else ""
        text = f"input '{spec.name}' of model '{model}' needs {kind}{fixed} bytes, the raw request has {body.size}"
        raise CallerError("bad_request", text, model=model)
    made = tuple(body.size // fixed if size < 0 else size for size in shape)
    return InputTensor(spec.name, spec.datatype, made, body.start, body.size)


def _raw_string_input(
    model: str, spec: TensorSpec, shape: tuple[int, ...], space: memoryview, body: BodyLayout
) -> InputTensor:
    if any(size not in (1, -1) for size in spec.shape) or len(spec.shape) > 1:
        text = f"a raw request fills a BYTES input of shape [1], input '{spec.name}' of model '{model}' is another"
        raise CallerError("bad_request", text, model=model)
    at = body.start - _LENGTH.size
    _LENGTH.pack_into(space, at, body.size)
    return InputTensor(spec.name, "BYTES", (1,) * len(shape), at, _LENGTH.size + body.size)
