"""The part of the host's budget that is left free for the next loads, by how models are used now (reserve.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from mmsup.supervisor.capacity.admission import Pool
from mmsup.supervisor.eviction.candidates import Candidates
from mmsup.supervisor.eviction.reserve import ASKED_S, reserve_bytes
from mmsup.supervisor.models.model_set import ModelSet

LOOK_S: Final = 1.0
"""As often as is known anew which models were used."""


class RoomReserve:
    def __init__(
        self, model_set: ModelSet, candidates: Candidates, needed_bytes: Callable[[], Mapping[str, int]]
    ) -> None:
        """`needed_bytes`: by model, what it holds when it serves, of those of which that was measured."""
        self._model_set = model_set
        self._candidates = candidates
        self._needed_bytes = needed_bytes
        self._bytes = 0
        self._looked_s = -math.inf

    def bytes(self, pool: Pool, held_bytes: int) -> int:
        """`held_bytes`: by all models that may go for others."""
        now_s = time.monotonic()
        if now_s >= self._looked_s + LOOK_S:
            self._looked_s = now_s
            room_bytes = pool.budget_bytes - (pool.claimed() - held_bytes)
            self._bytes = reserve_bytes(self._asked(now_s), room_bytes, pool.budget_bytes) if pool.is_configured else 0
        return self._bytes

    def _asked(self, now_s: float) -> list[int]:
        models, needed = self._model_set.models, self._needed_bytes()
        return [
            size_bytes
            for name, size_bytes in needed.items()
            if (model := models.get(name)) is not None
            and now_s - model.sleep.last_use_s <= ASKED_S
            and self._candidates.is_evictable(model)
        ]
