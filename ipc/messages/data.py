"""Messages between a gateway and a worker: requests, replies, shared memory.

    gateway --> worker     Infer, Grant, Drop          (many in one frame)
    gateway --> worker     Extent, Release             (with descriptors; always over the socket pair)
    worker  --> gateway    Reply                       (many in one frame)

These are hot and packed by hand in transport/codec.py. Nobody changes one once it is made; the records are not frozen
because making a frozen one costs seven times as much (1.4 and 0.2 µs for seven fields, Python 3.11), every time.

What requests have in common (names, shapes, parameters) is packed once, as their *signature*; a record carries the
signature as bytes, and the receiver looks it up by these bytes. So there is no numbering to keep in step, and a peer
that forgets loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.specs import TensorSpec

TensorLocation = bytes | memoryview | tuple[int, int, int]
"""Where a tensor's bytes are: here, or (segment, offset, size) of the arena."""


@dataclass(frozen=True, slots=True)
class InferSignature:
    """The words of an Infer: what requests may have in common. Inputs have the shapes of this request.

    `outputs`: names wanted, empty means all.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Any]  # scalars, checked by the gateway
    priority: int = 0
    """1 is the highest class, 0 the model's own."""
    runs_alone: bool = False
    """It shares its run with nobody, and what ran before it is answered first: it may be what ends the worker."""


@dataclass(frozen=True, slots=True)
class ReplySignature:
    """The words of a Reply with a result: its outputs, with the shapes that they have this time."""

    outputs: tuple[TensorSpec, ...]


@dataclass(slots=True)
class Infer:
    """Gateway to worker: run the model. Answered by exactly one Reply with the same id (or the worker's death).

    `words` is a Form, `places` where each of its inputs is. `grant`: (segment, offset, size) of out-arena space for the
    outputs that are too large to travel inline, packed in order at 64-byte steps; None if none is expected.
    `deadline_ns`: CLOCK_MONOTONIC; past it the request is dropped before it runs.
    """

    id: int
    signature: bytes
    deadline_ns: int
    output_buffer: tuple[int, int, int] | None
    locations: tuple[TensorLocation, ...]


@dataclass(frozen=True, slots=True)
class GrantBuffer:
    """Gateway to worker: `size` bytes of the out-arena for the outputs of request `id`. Answered by Reply.

    Sent again, larger, after a Reply with `need`.
    """

    id: int
    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Gateway to worker: forget request `id` (queued, or kept for a larger grant). Answered by Reply `cancelled`
    if it had not begun; otherwise its own Reply comes."""

    id: int


@dataclass(slots=True)
class InferReply:
    """Worker to gateway: the outcome of one Infer.

    `code` empty: `words` is an Outline, `places` where each of its outputs is. `need` > 0: the result is kept, a Grant
    of that many bytes is wanted. Else `code` and `text` say what went wrong. Times in nanoseconds; `batch` is how many
    requests ran together.
    """

    id: int
    code: str = ""
    text: str = ""
    signature: bytes = b""
    locations: tuple[TensorLocation, ...] = ()
    needed_bytes: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    batch: int = 1


@dataclass(frozen=True, slots=True)
class AttachExtent:
    """Gateway to worker, with one descriptor: memory `segment` of `size` bytes; `writable` is the out-arena."""

    segment: int
    size: int
    writable: bool


@dataclass(frozen=True, slots=True)
class DetachExtent:
    """Gateway to worker: `segment` will not be named again; unmap it."""

    segment: int


SIGNATURES: Final = (InferSignature, ReplySignature)
