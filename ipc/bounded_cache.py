"""Bounded cache of two generations, which evicts the keys not used lately. Bounded in keys, and in bytes if sizes are
given.

When the recent generation is full it becomes the previous one, whose keys are dropped. The alternative, to stop adding
when full, would let one peer with ever new keys keep all others out for good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

KEYS_LIMIT: Final = 4096
K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """`size_bytes`: the size of an entry, which must not change later. With it `limit_bytes` holds too; what is larger
    than half of that is not kept."""

    def __init__(
        self, limit: int = KEYS_LIMIT, limit_bytes: int = 0, size_bytes: Callable[[K, V], int] | None = None
    ) -> None:
        self._generation_limit = limit // 2
        self._generation_limit_bytes = limit_bytes // 2
        self._size_bytes = size_bytes
        self._recent_bytes = 0
        self.recent: dict[K, V] = {}
        """Hot paths look here first, without a call; `get` also finds keys of the previous generation."""
        self._previous: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.recent) + len(self._previous)

    def get(self, key: K) -> V | None:
        found = self.recent.get(key)
        if found is None:
            found = self._previous.pop(key, None)
            if found is not None:
                self.add(key, found)
        return found

    def add(self, key: K, value: V) -> None:
        size = self._size_bytes(key, value) if self._size_bytes is not None else 0
        if size > self._generation_limit_bytes:
            return
        is_full = self._recent_bytes + size > self._generation_limit_bytes
        if is_full or len(self.recent) >= self._generation_limit:
            self._previous, self.recent, self._recent_bytes = self.recent, {}, 0
        self._recent_bytes += size
        self.recent[key] = value
