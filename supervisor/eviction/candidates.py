"""The models that may be put to sleep for others, with the facts by which victims are chosen (victims.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from mmsup.ipc.memory.status_page import RUNNING
from mmsup.supervisor.capacity import victims
from mmsup.supervisor.capacity.moves import SleepTier
from mmsup.supervisor.capacity.victims import Candidate
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import LOADING, InstanceState
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import RevisionRole
from mmsup.supervisor.on_demand import model_usage
from mmsup.supervisor.on_demand.model_usage import ModelUsage
from mmsup.supervisor.on_demand.sleeper import Sleeper

NS: Final = 1e9
HeldBytes = Callable[[Instance], int]
"""What an instance takes of the memory that is needed, or is expected to while it loads."""


class Candidates:
    def __init__(self, settings: Settings, model_set: ModelSet, sleeper: Sleeper, usage: ModelUsage) -> None:
        self._settings = settings
        self._model_set = model_set
        self._sleeper = sleeper
        self._usage = usage

    def find(self, held_bytes: HeldBytes, but: str = "", *, on_device: bool = False) -> list[Candidate]:
        """Those that hold memory, as `held_bytes` says. `but`: a model that is none. Models that share a worker are one
        candidate, or none if one of them may not go. `on_device`: they may go to host memory."""
        room_bytes = self._model_set.memory.host_room_bytes() if on_device else 0
        now_s, found, groups = time.monotonic(), list[Candidate](), dict[str, list[Candidate | None]]()
        for model in self._model_set.models.values():
            if not model.revisions:
                continue  # asleep, or not wanted
            offloaded = _offloaded(model, held_bytes) if model.name != but else None
            found += [offloaded] if offloaded is not None else []
            candidate = self._candidate(model, held_bytes, now_s) if model.name != but else None
            if candidate is not None and on_device:
                candidate = self._with_move(candidate, model, room_bytes)
            is_there = any(each.worker is not None for each in model.instances()) or model.name == but
            shared = model.groups() if is_there else ()
            for group in shared:
                groups.setdefault(group, []).append(candidate)
            if candidate is not None and not shared:
                found.append(candidate)
        for members in groups.values():
            together = [each for each in members if each is not None]
            found += [victims.as_one(together)] if len(together) == len(members) else []
        return found

    def _candidate(self, model: Model, held_bytes_of: HeldBytes, now_s: float) -> Candidate | None:
        active = model.active
        if active is None or not model.wanted or model.sleep.is_asleep or not self.is_evictable(model):
            return None
        instances = list(active.instances())
        held_bytes = sum(map(held_bytes_of, instances))
        is_loading = any(each.state in LOADING for each in instances)
        facts = self._sleeper.facts(model)
        is_changing = is_loading or facts.is_changing
        if not held_bytes or facts.is_pinned or not (facts.is_serving or is_changing):
            return None
        self._usage.update(model, now_s)
        sleep, ready_s = model.sleep, model_usage.ready_s(model)
        return_s = model_usage.load_s(model) or 0.0
        ready_for_s = now_s - ready_s
        kept_s = victims.kept_s(ready_for_s, return_s, has_served=_has_served(instances))
        return Candidate(
            model.name,
            active.versions[0].spec.effective_priority(0),
            held_bytes,
            idle_s=now_s - max(sleep.last_use_s, ready_s) if not is_loading else 0.0,
            use_rate=sleep.use.at(now_s),
            return_s=return_s,
            kept_s=math.inf if is_changing or model_usage.live_sequences(model) else kept_s,
            running_s=max(_running_times_s(instances), default=0.0),
        )

    def _with_move(self, candidate: Candidate, model: Model, room_bytes: int) -> Candidate:
        tiers = self._sleeper.tiers
        if tiers.choose(model, room_bytes).tier is not SleepTier.HOST_MEMORY:
            return candidate
        found = tiers.estimate(model)
        return replace(candidate, offload_bytes=found.device_gain_bytes, host_growth_bytes=found.host_growth_bytes)

    def is_evictable(self, model: Model) -> bool:
        specs = model.entry.specs if model.entry is not None else ()
        return bool(specs) and specs[0].is_evictable(self._settings.control_mode)


def _offloaded(model: Model, held_bytes_of: HeldBytes) -> Candidate | None:
    """A model that is asleep in host memory; None if it is not, or holds nothing of that memory."""
    revision = model.revision(RevisionRole.OFFLOADED)
    if revision is None or not revision.can_be_restored():
        return None
    instances = list(revision.instances())
    held_bytes = sum(map(held_bytes_of, instances))
    if not held_bytes:
        return None
    is_moving = any(each.state is InstanceState.OFFLOADING for each in instances)
    return Candidate(
        model.name,
        revision.versions[0].spec.effective_priority(0),
        held_bytes,
        idle_s=time.monotonic() - model.sleep.since_s,
        use_rate=model.sleep.use.at(time.monotonic()),
        return_s=model.sleep.load_s or 0.0,
        kept_s=math.inf if is_moving else 0.0,
        is_offloaded=True,
    )


def _has_served(instances: list[Instance]) -> bool:
    """A request since it was loaded."""
    return any(each.process is not None and each.process.progress().requests for each in instances)


def _running_times_s(instances: list[Instance]) -> Iterator[float]:
    now_ns = time.monotonic_ns()
    for each in instances:
        if each.state is InstanceState.READY and each.process is not None:
            progress = each.process.progress()
            if progress.activity in RUNNING:
                yield (now_ns - progress.since_ns) / NS
