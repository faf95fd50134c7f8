"""Whether a model may be put to sleep, and when it is for want of requests. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.models.sleep_state import SleepReason

DEFAULT_TTL_S: Final = 300.0
"""Of models that are loaded on demand. Long against a load (0.1 to some 10 s), so that a model in use, however rarely,
pays for one only once in a while; short against the time for which people forget a model."""


@dataclass(frozen=True, slots=True)
class SleepFacts:
    """One model."""

    is_wanted: bool
    is_asleep: bool
    is_pinned: bool
    is_changing: bool
    """It is being loaded or reloaded, or one of its workers is being replaced."""
    is_serving: bool
    """Each of its instances is ready."""
    is_ensemble: bool = False


def refusal(facts: SleepFacts, reason: SleepReason) -> str:
    """Why a model may not be put to sleep now, as the end of a sentence; empty if it may."""
    if not facts.is_wanted:
        return "is not loaded: `mmsup ctl load` has it ready to be asked"
    if facts.is_ensemble:
        return "is an ensemble, which holds no memory: put its steps to sleep"
    if facts.is_pinned:
        return "is pinned: take `pin` out of its configuration first"
    if facts.is_changing:
        return "is being loaded: try again when it serves"
    if not facts.is_serving and reason is not SleepReason.ASKED:
        return "does not serve"
    return ""


def ttl_s(spec: ModelSpec, *, is_on_demand: bool) -> float:
    """How long a model is kept without a request; 0: for ever."""
    if spec.pin:
        return 0.0
    if spec.ttl_s is not None:
        return spec.ttl_s
    return DEFAULT_TTL_S if is_on_demand else 0.0


def is_due(ttl: float, ready_s: float, last_use_s: float, now_s: float) -> bool:
    """Whether a model that became ready then has had no request for its `ttl`; it has the whole of that to get one."""
    return ttl > 0 and now_s - max(ready_s, last_use_s) >= ttl
