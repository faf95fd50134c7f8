"""By what a request is known again: a digest of its inputs, whatever way they came and in whatever order. Pure.

Taken only of requests that were in the run of a worker when it ended, and of those that come to a model which has such
requests on its list (ipc/poison_policy.py). Parameters and the choice of outputs are no part of it: no model sees them.
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
    """One input, wherever its bytes lie."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def fingerprint(model: str, version: str, inputs: Iterable[Tensor]) -> bytes:
    """The digest of these inputs for this version. About 1 ms for each MiB."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    _update(digest, model.encode(), version.encode())
    for each in sorted(inputs, key=lambda each: each.name):
        _update(digest, each.name.encode(), each.datatype.encode(), repr(each.shape).encode(), each.data)
    return digest.digest()


def _update(digest: hashlib.blake2b, *parts: bytes | memoryview) -> None:
    """Each with its length before it, so that no two lists of parts are one text."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def received_tensors(inputs: Iterable[InputTensor], space: memoryview) -> list[Tensor]:
    """The inputs of a request as it has come; `space`: where those lie that have no bytes of their own."""
    return [
        Tensor(each.name, each.datatype, each.shape, space[each.offset : each.offset + each.size])
        if each.data is None
        else Tensor(each.name, each.datatype, each.shape, each.data)
        for each in inputs
    ]


def sent_tensors(request: Infer, slots: Sequence[Slot]) -> list[Tensor]:
    """The inputs of a request as it was sent; `slots`: those that its places are in."""
    specs = unpack_infer_signature(request.signature).inputs
    return [
        Tensor(each.name, each.datatype, each.shape, _bytes_at(place, slots))
        for each, place in zip(specs, request.locations, strict=True)
    ]


def total_bytes(inputs: Iterable[Tensor]) -> int:
    """How much there is to read."""
    return sum(len(each.data) for each in inputs)


def _bytes_at(place: TensorLocation, slots: Sequence[Slot]) -> bytes | memoryview:
    if not isinstance(place, tuple):
        return place
    segment, offset, size = place
    for slot in slots:
        start = offset - slot.offset
        if slot.segment == segment and 0 <= start <= len(slot.view) - size:
            return slot.view[start : start + size]
    raise AssertionError("a request was sent with a place in none of its slots")
