"""Puts models to sleep: their memory is given back, and they stay ready to be asked.

Atomic with requests: what a worker was sent before is answered before it ends, and whoever comes later waits for the
next load. No request fails because of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.capacity.moves import MoveRefused, SleepTier
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.loader import LoadContext, ModelLoader, load_result
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.revision import RevisionRole
from mmsup.supervisor.models.sleep_state import SleepPhase, SleepReason
from mmsup.supervisor.on_demand import model_usage
from mmsup.supervisor.on_demand.model_usage import ModelUsage
from mmsup.supervisor.on_demand.sleep_policy import SleepFacts, refusal
from mmsup.supervisor.on_demand.sleep_tiers import SleepTiers
from mmsup.supervisor.state.desired_state import DesiredModel


class Sleeper:
    def __init__(self, context: LoadContext, loader: ModelLoader, usage: ModelUsage) -> None:
        self._context = context
        self._loader = loader
        self._usage = usage
        self.tiers = SleepTiers(context.model_set)

    def why_not(self, model: Model, reason: SleepReason) -> str:
        """Why a model may not be put to sleep now; empty if it may."""
        return refusal(self.facts(model), reason)

    def put_to_sleep(
        self,
        model: Model,
        reason: SleepReason,
        detail: str = "",
        choice: str = "",
        numbers: Mapping[str, Any] = MappingProxyType({}),  # fields of an event
        tier: SleepTier | None = None,
    ) -> str:
        """Why the model was not put to sleep; empty if it is asleep now. `detail`: beyond the reason, in words;
        `choice` and `numbers`: why it was chosen. `tier`: where it is to be; None: wherever is best."""
        why_not = self.why_not(model, reason)
        if why_not or model.sleep.is_asleep:
            return why_not
        now_s, sleep, active = time.monotonic(), model.sleep, model.active
        self._usage.update(model, now_s)
        can_move = self.tiers.refused(model) is not MoveRefused.NOT_ABLE
        chosen = self.tiers.choose(model)
        tier = tier or chosen.tier
        if active is not None:
            sleep.load_s = model_usage.load_s(model)
            sleep.stamp = active.stamp
            sleep.metadata = {each.spec.version: each.metadata for each in active.versions if each.metadata}
        sleep.fall_asleep(reason, now_s, active.config if active is not None else "", detail)
        if tier is SleepTier.HOST_MEMORY and active is not None:
            revision_changes.offload(active)
        self._retire_all(model, gives_up_copy=tier is SleepTier.UNLOADED)
        text = f"{sleep.why}{f': {choice}' if choice else ''}; {_then(tier, chosen.why if can_move else '')}"
        idle_s = round(now_s - sleep.last_use_s, 1) if sleep.last_use_s else None
        tier_field = {"tier": str(tier)} if can_move else {}
        fields = {"reason": str(reason), "idle_s": idle_s, **tier_field, **numbers}
        self._context.event_log.record("model_asleep", text, model=model.name, **fields)
        return ""

    def give_up_copy(
        self,
        model: Model,
        reason: SleepReason,
        detail: str = "",
        choice: str = "",
        numbers: Mapping[str, Any] = MappingProxyType({}),  # as above
    ) -> bool:
        """Unload a model that is asleep in host memory; false if it is not there."""
        offloaded, sleep = model.revision(RevisionRole.OFFLOADED), model.sleep
        if offloaded is None or not sleep.is_asleep:
            return False
        sleep.fall_asleep(reason, sleep.since_s, sleep.config, detail)
        self._retire_all(model)
        text = f"{sleep.why}{f': {choice}' if choice else ''}; it is in host memory no more, its next request loads it"
        fields = {"reason": str(reason), "tier": str(SleepTier.UNLOADED), **numbers}
        self._context.event_log.record("model_asleep", text, model=model.name, **fields)
        return True

    def return_to_sleep(self, model: Model) -> None:
        """Its load found no room: it is asleep as before, instead of taking the room as soon as there is some, which
        perhaps nobody asks for any more."""
        active, sleep = model.active, model.sleep
        if model.wanted and active is not None and not sleep.is_asleep and not active.is_any_serving():
            failure = active.load_failure()
            sleep.fall_asleep(sleep.reason, sleep.since_s, active.config, sleep.detail)
            sleep.failure = failure.operator_text if failure is not None else ""
            self._retire_all(model)

    def _retire_all(self, model: Model, *, gives_up_copy: bool = True) -> None:
        for revision in list(model.revisions):
            is_kept = revision.role is RevisionRole.OFFLOADED and not gives_up_copy
            if revision.role is not RevisionRole.RETIRING and not is_kept:
                revision_changes.retire(revision)
        self._context.model_set.mark_changed(model.name)

    async def sleep(self, name: str) -> Any:  # JSON
        """Put a model to sleep because somebody asks for that; the command's result when nothing is routed to it."""
        started_s = time.monotonic()
        model = self._context.model_set.model(name)
        if model is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        facts = self.facts(model)
        why_not = refusal(facts, SleepReason.ASKED)
        if why_not:
            passes = facts.is_wanted and not facts.is_pinned and not facts.is_ensemble
            raise CallerError("conflict", f"'{name}' {why_not}", model=name, retryable=passes)
        config = model.active.config if model.active is not None else model.sleep.config
        desired = DesiredModel(up=True, config=config, asleep=True)
        self._context.save_desired(name, desired, "it is loaded again, or asleep, as its configuration says")
        self.put_to_sleep(model, SleepReason.ASKED)
        await self._context.send_route(name)
        return load_result(model, time.monotonic() - started_s)

    def facts(self, model: Model) -> SleepFacts:
        active, specs = model.active, model.entry.specs if model.entry is not None else ()
        spec = active.versions[0].spec if active is not None and active.versions else specs[0] if specs else None
        is_staged = any(each.role is RevisionRole.STAGED for each in model.revisions)
        is_waking = model.sleep.phase is SleepPhase.WAKING
        return SleepFacts(
            is_wanted=model.wanted,
            is_asleep=model.sleep.is_asleep,
            is_pinned=spec is not None and spec.pin,
            is_changing=is_staged or is_waking or model.is_settling or model.name in self._loader.pending,
            is_serving=active is not None and active.is_fully_ready(),
            is_ensemble=spec is not None and bool(spec.steps),
        )


def _then(tier: SleepTier, why_unloaded: str) -> str:
    """What follows, as the end of a sentence."""
    if tier is SleepTier.HOST_MEMORY:
        return "it waits in host memory, from where its next request has it back"
    return f"its next request loads it{f' ({why_unloaded})' if why_unloaded else ''}"
