"""Looks once a second which models were used, puts to sleep those that had no request for their `ttl`, and has those
looked at that wait for their turn to be loaded.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.revision import RevisionRole
from mmsup.supervisor.models.sleep_state import SleepPhase, SleepReason
from mmsup.supervisor.models.startup_policy import is_on_demand
from mmsup.supervisor.on_demand import model_usage, sleep_policy
from mmsup.supervisor.on_demand.model_usage import ModelUsage
from mmsup.supervisor.on_demand.sleeper import Sleeper

CHECK_S: Final = 1.0


class IdleWatch:
    def __init__(self, settings: Settings, model_set: ModelSet, sleeper: Sleeper, usage: ModelUsage) -> None:
        self._settings = settings
        self._model_set = model_set
        self._sleeper = sleeper
        self._usage = usage

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.check(time.monotonic())

    def check(self, now_s: float) -> None:
        for model in list(self._model_set.models.values()):
            self._usage.update(model, now_s)
            if model.sleep.phase is SleepPhase.WAKING and any(each.is_queued for each in model.instances()):
                self._model_set.mark_changed(model.name)  # loads under way may have become slow: load_queue.slots_held
            if model.wanted and not model.sleep.is_asleep and self._is_due(model, now_s):
                self._sleeper.put_to_sleep(model, SleepReason.TTL)
            elif model.sleep.is_asleep and self._is_copy_due(model, now_s):
                self._sleeper.give_up_copy(model, model.sleep.reason, "and nobody has asked for it since")

    def _is_due(self, model: Model, now_s: float) -> bool:
        active, entry = model.active, model.entry
        if active is None or entry is None or not active.versions or not active.is_fully_ready():
            return False
        ttl_s = sleep_policy.ttl_s(active.versions[0].spec, is_on_demand=is_on_demand(self._settings, entry))
        return sleep_policy.is_due(ttl_s, model_usage.ready_s(model), model.sleep.last_use_s, now_s)

    def _is_copy_due(self, model: Model, now_s: float) -> bool:
        """One that is asleep in host memory is unloaded after its `ttl` there."""
        offloaded, entry = model.revision(RevisionRole.OFFLOADED), model.entry
        if offloaded is None or entry is None:
            return False
        ttl_s = sleep_policy.ttl_s(offloaded.versions[0].spec, is_on_demand=is_on_demand(self._settings, entry))
        return sleep_policy.is_due(ttl_s, model.sleep.since_s, 0.0, now_s)
