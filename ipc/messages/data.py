"""Messages between a gateway and a worker: requests, replies, shared memory.

    gateway --> worker     Infer, GrantBuffer, Cancel, StreamCredit, EndSequence   (many in one frame)
    gateway --> worker     InferWithRegions, ForgetHandle  (as those, where a client shares memory of a GPU)
    gateway --> worker     AttachExtent, DetachExtent      (with a descriptor; always over the socket pair)
    worker  --> gateway    InferReply, ResponsePart        (many in one frame)

Packed by hand in transport/codec.py, because these are sent for every request. Infer and InferReply are immutable by
convention only: a frozen dataclass costs seven times as much to create (1.4 and 0.2 µs for seven fields, Python 3.11).

What many requests have in common (names, shapes, parameters) is their *signature*. It is packed once; a record carries
the packed bytes and the receiver uses them as the key of its cache. No numbering has to be kept in step, and a receiver
that evicts an entry loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.specs import TensorSpec

SEQUENCE_ID: Final = "sequence_id"
SEQUENCE_START: Final = "sequence_start"
SEQUENCE_END: Final = "sequence_end"
SEQUENCE_NO_WAIT: Final = "triton_sequence_no_wait"
"""Parameters of a request that belongs to a sequence: an integer or a string, and booleans. The last one is the
gateway's: the worker answers `queue_full` at once if it has no free slot."""
TensorLocation = bytes | memoryview | tuple[int, int, int]
"""The bytes of a tensor themselves, or (segment, offset, size) in the arena."""


@dataclass(frozen=True, slots=True)
class InferSignature:
    """The part of an Infer that other requests may share. `outputs`: requested names; empty means all."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Any]  # scalars, checked by the gateway
    priority: int = 0
    """1 is the highest, 0 the default of the model."""
    runs_alone: bool = False
    """Execute it in no batch, after all earlier replies were sent: it is suspected of killing workers."""


@dataclass(frozen=True, slots=True)
class ReplySignature:
    """The part of a successful InferReply that others may share: names, datatypes and actual shapes of the outputs."""

    outputs: tuple[TensorSpec, ...]


@dataclass(slots=True)
class Infer:
    """Run the model. Answered by exactly one final InferReply with the same id, or by the worker's death.

    `signature`: a packed InferSignature; `locations`: one per input. `output_buffer`: (segment, offset, size) in the
    arena for outputs too large to travel inline, packed in order at multiples of 64 bytes; None if none are expected.
    `deadline_ns`: CLOCK_MONOTONIC; a request that has not started by then is cancelled.
    """

    id: int
    signature: bytes
    deadline_ns: int
    output_buffer: tuple[int, int, int] | None
    locations: tuple[TensorLocation, ...]


@dataclass(frozen=True, slots=True)
class DeviceRegion:
    """Where a tensor lies in memory of a GPU that a client shares, which the worker opens by its handle."""

    place: int
    """Among the inputs of the request; -1: it is an output."""
    tensor: str
    region: str
    number: int
    """Of the GPU, as the server shows it."""
    device: str
    """Its UUID as NVML writes it."""
    handle: bytes
    """CUDA IPC handle."""
    offset: int
    size: int
    """Exactly, of an input; at most, of an output."""


@dataclass(slots=True)
class InferWithRegions(Infer):
    """An Infer with tensors in memory of a GPU: the worker copies inputs out of it when the request comes (their
    locations are names for the region, for the list of poison requests), and outputs into it when they are complete.
    The outputs are in the reply too."""

    regions: tuple[DeviceRegion, ...] = ()


@dataclass(frozen=True, slots=True)
class ForgetHandle:
    """A region was unregistered: close the memory of its handle, if it is open. Not answered."""

    handle: bytes


@dataclass(frozen=True, slots=True)
class GrantBuffer:
    """A larger output buffer for request `id`, after an InferReply with `needed_bytes`. Answered by InferReply."""

    id: int
    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Discard request `id`. Answered by an InferReply with code `cancelled`, or by its result if it had started."""

    id: int


@dataclass(frozen=True, slots=True)
class EndSequence:
    """Forget the sequence, if there is one of that id: it begins anew at another worker. Not answered.

    `number` counts if `text` is empty."""

    number: int
    text: str


@dataclass(slots=True)
class InferReply:
    """The outcome of one Infer.

    Success: `code` is empty, `signature` is a packed ReplySignature, `locations` has one entry per output.
    `needed_bytes` > 0: the worker holds the result until a GrantBuffer of at least that size. Otherwise `code` and
    `text` are the error. `batch`: number of requests executed together. `rows`: their rows in all, which is what
    Triton calls the batch size; 1 for a model without a batch axis.
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
    rows: int = 1


@dataclass(slots=True)
class ResponsePart(InferReply):
    """One of many responses to one Infer, in order; the InferReply that ends them has no outputs, or is an error.

    As an InferReply with outputs, or with `needed_bytes`: then the same part follows once a buffer was granted. A part
    whose outputs are in the buffer owns it until a StreamCredit counts it. At most WINDOW_PARTS parts, and one more
    than WINDOW_BYTES hold, are sent ahead of the credits (ipc/messages/stream_window.py).
    """

    sequence: int = 0
    """0 for the first."""


@dataclass(frozen=True, slots=True)
class StreamCredit:
    """The client has taken the first `taken` parts of request `id`: the worker may make as many more."""

    id: int
    taken: int


@dataclass(frozen=True, slots=True)
class AttachExtent:
    """With one descriptor: map it as `segment`. `writable`: it holds output buffers."""

    segment: int
    size: int
    writable: bool


@dataclass(frozen=True, slots=True)
class DetachExtent:
    """Unmap `segment`; no later message refers to it."""

    segment: int
