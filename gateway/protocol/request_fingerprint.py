"""Request fingerprints: digests that are equal for equal inputs, however they were sent and in whatever order. Pure.

Computed only for requests that were in a worker's running batch when it exited, and for those to a model with a poison
list (ipc/poison_policy.py). Parameters and the choice of outputs are left out, because models do not see them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.protocol.inference_job import InputTensor
from mmsup.ipc.memory.arena import Slot
from mmsup.ipc.messages.data import Infer, TensorLocation
from mmsup.ipc.transport.codec import unpack_infer_signature

DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input with its bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def fingerprint(model: str, version: str, inputs: Iterable[Tensor]) -> bytes:
    """The digest of these inputs for this version; takes about 1 ms per MiB."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _update(digest, model.encode(), version.encode())
    for each in sorted(inputs, key=lambda each: each.name):
        _update(digest, each.name.encode(), each.datatype.encode(), repr(each.shape).encode(), each.data)
    return digest.digest()


def _update(digest: hashlib.blake2b, *parts: bytes | memoryview) -> None:
    """Add each part with its length before it, so that no two lists of parts give the same text."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def received_tensors(inputs: Iterable[InputTensor], buffer: memoryview) -> list[Tensor]:
    """The inputs of a request as received; those without bytes of their own lie in `buffer`."""
    return [
        Tensor(each.name, each.datatype, each.shape, buffer[each.offset : each.offset + each.size])
        if each.data is None
        else Tensor(each.name, each.datatype, each.shape, each.data)
        for each in inputs
    ]


def sent_tensors(request: Infer, slots: Sequence[Slot]) -> list[Tensor]:
    """The inputs of a request as sent to a worker; its locations are in `slots`."""
    specs = unpack_infer_signature(request.signature).inputs
    return [
        Tensor(each.name, each.datatype, each.shape, _bytes_at(location, slots))
        for each, location in zip(specs, request.locations, strict=True)
    ]


def total_bytes(inputs: Iterable[Tensor]) -> int:
    return sum(len(each.data) for each in inputs)


def _bytes_at(location: TensorLocation, slots: Sequence[Slot]) -> bytes | memoryview:
    if not isinstance(location, tuple):
        return location
    segment, offset, size = location
    for slot in slots:
        start = offset - slot.offset
        if slot.segment == segment and 0 <= start <= len(slot.view) - size:
            return slot.view[start : start + size]
    raise AssertionError("a request was sent with a location in none of its slots")
