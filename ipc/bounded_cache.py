"""Bounded cache of two generations, which evicts the keys not used lately.

When the recent generation is full it becomes the previous one, whose keys are dropped. The alternative, to stop adding
when full, would let one peer with ever new keys keep all others out for good.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

KEYS_LIMIT: Final = 4096
K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    def __init__(self, limit: int = KEYS_LIMIT) -> None:
        self._generation_limit = limit // 2
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
        if len(self.recent) >= self._generation_limit:
            self._previous, self.recent = self.recent, {}
        self.recent[key] = value
