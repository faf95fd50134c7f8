"""Puts models to sleep for the memory that they hold: for loads that need room, and for a machine that runs short.

Who goes is chosen by victims.py; a model goes to sleep as for any other reason (on_demand/sleeper.py). Each choice is
recorded with its numbers, for the model that goes and for the one that it goes for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mmsup.supervisor.capacity import victims
from mmsup.supervisor.capacity.admission import Pool, RoomRequest
from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.capacity.victims import Candidate
from mmsup.supervisor.config.units import age, size_text
from mmsup.supervisor.eviction.candidates import Candidates
from mmsup.supervisor.eviction.reserve import MOST_SHARE
from mmsup.supervisor.eviction.room_reserve import RoomReserve
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.sleep_state import SleepReason
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.on_demand.sleeper import Sleeper

RECHECK_S: Final = 0.05
"""Until a load that waits for models which have not served yet asks again."""
AHEAD: Final = "room for the next loads"
LOWEST_CLASS: Final = 1 << 31
"""Of a request for which any model may go."""


class ModelEvictor:
    def __init__(
        self,
        model_set: ModelSet,
        sleeper: Sleeper,
        candidates: Candidates,
        reserve: RoomReserve,
        event_log: EventLog,
    ) -> None:
        self._model_set = model_set
        self._sleeper = sleeper
        self._candidates = candidates
        self._event_log = event_log
        self.reserve = reserve
        self.held_bytes: Callable[[Instance, str], int] = lambda _, __: 0
        """What an instance takes of the memory of a GPU, or of the host if none is named."""
        self._rechecks: dict[str, asyncio.TimerHandle] = {}
        """By model whose load waits until others may go."""
        self.counts: Mapping[str, int] = {"budget": 0, "pressure": 0}
        """Models that were put to sleep, by why memory was needed."""

    def is_evictable(self, instance: Instance) -> bool:
        model = self._model_set.model(instance.revision.spec.name)
        return model is not None and self._candidates.is_evictable(model)

    def evictable_bytes(self, request: RoomRequest) -> int:
        found = self._find(request)
        return sum(each.held_bytes for each in found if victims.may_go(each, request.priority))

    def keep_reserve(self, request: RoomRequest, pool: Pool, left_bytes: int) -> int:
        if left_bytes >= pool.budget_bytes * MOST_SHARE:
            return 0
        found = self._find(request)
        missing_bytes = self.reserve.bytes(pool, sum(each.held_bytes for each in found)) - left_bytes
        if missing_bytes <= 0:
            return 0
        chosen = victims.choose(found, missing_bytes, request.priority)
        return sum(each.held_bytes for each in self._evict(chosen, replace(request, model=""), "budget", AHEAD))

    def make_room(self, request: RoomRequest, missing_bytes: int) -> int:
        found = self._find(request)
        gone = self._evict(self._choose(found, missing_bytes, request), request, "budget")
        made_bytes = sum(each.held_bytes for each in gone)
        if gone:
            names = ", ".join(f"{each.name} ({size_text(each.held_bytes)})" for each in gone)
            self._event_log.record(
                "room_made",
                f"{size_text(missing_bytes)} of {request.memory} were missing for it, and these sleep now: {names}",
                model=request.model,
                memory=request.memory,
                missing_bytes=missing_bytes,
                evicted=[each.name for each in gone],
            )
        if made_bytes < missing_bytes:
            due_s = victims.next_due_s(found, request.priority)
            if due_s < math.inf:
                self._recheck(request.model, min(due_s, RECHECK_S))
        return made_bytes

    def give_back(self, missing_bytes: int, why: str, reason: str) -> int:
        """Put models to sleep that hold so much of the host's memory, whichever class they are of. Returns how much
        those hold that go. `reason`: as `counts` has it."""
        request = RoomRequest("", LOWEST_CLASS, memory="host memory")
        chosen = victims.choose(self._find(request), missing_bytes, 1)  # also of those that are in use: they take turns
        gone = self._evict(chosen, request, reason, why)
        return sum(each.held_bytes for each in gone)

    def room_for(self, pool: Pool, needed_bytes: int, why: str) -> bool:
        """Whether the host's budget has room for what many models need together; others are put to sleep for it."""
        missing_bytes = pool.missing_bytes(Need(needed_bytes, needed_bytes))
        request = RoomRequest("", LOWEST_CLASS, memory=pool.name)
        chosen = victims.choose(self._find(request), missing_bytes, 1) if missing_bytes else []
        if sum(each.held_bytes for each in chosen) < missing_bytes:
            return False
        gone = self._evict(chosen, request, "budget", why)
        return sum(each.held_bytes for each in gone) >= missing_bytes

    def close(self) -> None:
        for each in self._rechecks.values():
            each.cancel()

    def _find(self, request: RoomRequest) -> list[Candidate]:
        of_device = bool(request.device)
        return self._candidates.find(
            lambda each: self.held_bytes(each, request.device), but=request.model, on_device=of_device
        )

    def _choose(self, found: list[Candidate], missing_bytes: int, request: RoomRequest) -> list[Candidate]:
        if not request.device:
            return victims.choose(found, missing_bytes, request.priority)
        room_bytes = self._model_set.memory.host_room_bytes()
        return victims.choose_with_tiers(found, missing_bytes, request.priority, room_bytes)

    def _evict(self, chosen: Sequence[Candidate], request: RoomRequest, reason: str, why: str = "") -> list[Candidate]:
        gone: list[Candidate] = []
        for each in chosen:
            detail = f"for {request.model}" if request.model else f"by others: {why}"
            numbers = _numbers(each, request, reason)
            models = [self._model_set.models[name] for name in (each.name, *each.others)]
            count = sum(self._let_go(model, each, detail, numbers) for model in models)
            self.counts = {**self.counts, reason: self.counts[reason] + count}
            gone += [each] if count else []
        return gone

    def _let_go(self, model: Model, candidate: Candidate, detail: str, numbers: Mapping[str, Any]) -> bool:
        why = SleepReason.EVICTED, detail, describe(candidate), numbers
        if candidate.is_offloaded:
            return self._sleeper.give_up_copy(model, *why)
        return not self._sleeper.put_to_sleep(model, *why, tier=candidate.tier)

    def _recheck(self, name: str, after_s: float) -> None:
        if name not in self._rechecks:
            self._rechecks[name] = asyncio.get_running_loop().call_later(after_s, self._on_recheck, name)

    def _on_recheck(self, name: str) -> None:
        del self._rechecks[name]
        if self._model_set.model(name) is not None:
            self._model_set.mark_changed(name)


def describe(candidate: Candidate) -> str:
    idle, load = age(candidate.idle_s), age(candidate.return_s)
    if candidate.is_offloaded:
        return f"it held {size_text(candidate.held_bytes)} while it was asleep, for {idle}, and loads in {load}"
    return (
        f"it held {size_text(candidate.held_bytes)}, had no request for {idle}, was used in {candidate.use_rate:.1%} "
        f"of the last seconds, and loads in {load}"
    )


def _numbers(candidate: Candidate, request: RoomRequest, reason: str) -> dict[str, Any]:  # JSON
    return {
        "needed_by": reason,
        "for_model": request.model,
        "memory": request.memory,
        "held_bytes": candidate.held_bytes,
        "use_rate": round(candidate.use_rate, 6),
        "return_s": round(candidate.return_s, 3),
        "priority": candidate.priority,
    }
