"""Messages of calls between models: what the code of one model asks of another, over its worker's link to a gateway.

    worker  --> gateway    CallModel, CallInputs, EndCall
    gateway --> worker     GrantCall, CallReply

They travel in the frames of the data channel. A call belongs to the requests that its worker executes: it has their
deadline, and ends with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsup.ipc.messages.data import TensorLocation


@dataclass(frozen=True, slots=True)
class CallModel:
    """Run another model. Answered by one CallReply; before that by GrantCall if `needed_bytes` is above 0.

    `parents`: ids of the requests of this gateway in the run that calls; `is_shared`: the run has requests of other
    gateways too; `blocks`: the worker does nothing else until the call has ended. `deadline_ns`: CLOCK_MONOTONIC, 0 for
    none but that of the parents. `signature`: a packed InferSignature of the inputs; `locations`: one per input, none
    where they have to wait for `needed_bytes` of memory.
    """

    id: int
    parents: tuple[int, ...]
    is_shared: bool
    blocks: bool
    model: str
    version: str
    deadline_ns: int
    signature: bytes
    needed_bytes: int
    locations: tuple[TensorLocation, ...] = ()


@dataclass(frozen=True, slots=True)
class CallInputs:
    """Where the inputs of call `id` are, after a GrantCall."""

    id: int
    locations: tuple[TensorLocation, ...]


@dataclass(frozen=True, slots=True)
class EndCall:
    """Nobody waits for call `id` any more, or its outputs have been read: free what it holds. Not answered."""

    id: int


@dataclass(frozen=True, slots=True)
class GrantCall:
    """Memory for the inputs of call `id`, in the arena. Answered by CallInputs or EndCall."""

    id: int
    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class CallReply:
    """The outcome of call `id`: `signature`, a packed ReplySignature, with one location per output; or an error.

    Outputs in the arena stay until EndCall, which is sent for them and for no other reply.
    """

    id: int
    code: str
    text: str
    retryable: bool
    signature: bytes = b""
    locations: tuple[TensorLocation, ...] = ()
