"""What a request says of its sequence, read from the parameters of its signature once and cached. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.messages.data import SEQUENCE_END, SEQUENCE_ID, SEQUENCE_NO_WAIT, SEQUENCE_START
from mmsup.ipc.transport.codec import pack_signature, unpack_infer_signature
from mmsup.worker.batching.request_signature import RequestSignature, RequestSignatureCache

SIGNATURES_LIMIT: Final = 4096
_KEYS: Final = (SEQUENCE_ID, SEQUENCE_START, SEQUENCE_END, SEQUENCE_NO_WAIT)
SequenceId = int | str


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Which sequence a request belongs to, and where in it it is."""

    id: SequenceId
    """0 or "": none."""
    is_start: bool = False
    is_end: bool = False
    may_wait: bool = True
    """For a slot, in a sequence that starts."""


class SequenceSignatures:
    """The signature is the same object for all sequences whose requests are alike, so that these share batches."""

    def __init__(self) -> None:
        self._parsed: BoundedCache[bytes, tuple[RequestSignature, SequenceStep]] = BoundedCache(SIGNATURES_LIMIT)
        self._plain = RequestSignatureCache()

    def get(self, packed: bytes) -> tuple[RequestSignature, SequenceStep]:
        """The signature in these bytes; WireError if they are none."""
        found = self._parsed.get(packed)
        if found is None:
            message = unpack_infer_signature(packed)
            others = {key: value for key, value in message.parameters.items() if key not in _KEYS}
            signature = self._plain.get(pack_signature(replace(message, parameters=others)))
            found = signature, step_of(message.parameters)
            self._parsed.add(packed, found)
        return found


def step_of(parameters: dict[str, Any]) -> SequenceStep:  # scalars, checked by the gateway
    start, end = bool(parameters.get(SEQUENCE_START)), bool(parameters.get(SEQUENCE_END))
    return SequenceStep(parameters.get(SEQUENCE_ID, 0), start, end, not parameters.get(SEQUENCE_NO_WAIT))
