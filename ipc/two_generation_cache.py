"""A bounded mapping that forgets what was not asked for lately.

It has two halves; when the young one is full it becomes the old one. To stop adding when full would let one peer with
changing keys push all others out for good.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

KEYS_LIMIT: Final = 4096
K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A bounded mapping that forgets what was not asked for lately."""

    def __init__(self, limit: int = KEYS_LIMIT) -> None:
        self._generation_limit = limit // 2
        self.recent: dict[K, V] = {}
        """Whoever is in a hurry looks here first; what is not here, `get` may find."""
        self._previous: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.recent) + len(self._previous)

    def get(self, key: K) -> V | None:
        """What was put there, if it is still known."""
        found = self.recent.get(key)
        if found is None:
            found = self._previous.pop(key, None)
            if found is not None:
                self.add(key, found)
        return found

    def add(self, key: K, value: V) -> None:
        """Know this from now on."""
        if len(self.recent) >= self._generation_limit:
            self._previous, self.recent = self.recent, {}
        self.recent[key] = value
