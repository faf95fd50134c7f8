"""A bounded mapping that forgets what was not asked for lately.

It has two halves; when the young one is full it becomes the old one. To stop adding when full would let one peer with
changing keys push all others out for good.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

KEYS_LIMIT: Final = 4096
K = TypeVar("K")
V = TypeVar("V")


class Halves(Generic[K, V]):
    """A bounded mapping that forgets what was not asked for lately."""

    def __init__(self, limit: int = KEYS_LIMIT) -> None:
        self._half = limit // 2
        self.young: dict[K, V] = {}
        """Whoever is in a hurry looks here first; what is not here, `get` may find."""
        self._old: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

    def get(self, key: K) -> V | None:
        """What was put there, if it is still known."""
        found = self.young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: K, value: V) -> None:
        """Know this from now on."""
        if len(self.young) >= self._half:
            self._old, self.young = self.young, {}
        self.young[key] = value
