"""Results by the digest of their request, bounded in bytes: the one that was not used for longest goes first. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.protocol.inference_job import OutputTensor

ENTRY_BYTES: Final = 1024
"""What an entry takes beside the bytes of its outputs, estimated high."""
OUTPUT_BYTES: Final = 512
"""The same of each output."""


@dataclass(frozen=True, slots=True)
class CachedOutput:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class ResponseCache:
    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._entries: OrderedDict[bytes, tuple[tuple[CachedOutput, ...], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[CachedOutput, ...] | None:
        found = self._entries.get(key)
        if found is None:
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, outputs: Iterable[OutputTensor]) -> bool:
        """Keep a copy of these outputs; False if they are larger than all that may be kept."""
        given = list(outputs)
        size = ENTRY_BYTES + sum(OUTPUT_BYTES + 2 * len(each.name) + each.data.nbytes for each in given)
        if size > self.limit_bytes:
            return False
        self._drop(key)
        while self.used_bytes + size > self.limit_bytes:
            self._drop(next(iter(self._entries)))
        kept = tuple(CachedOutput(each.name, each.datatype, each.shape, bytes(each.data)) for each in given)
        self._entries[key] = kept, size
        self.used_bytes += size
        return True

    def _drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.used_bytes -= found[1]
