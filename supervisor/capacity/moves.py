"""Whether a model that goes to sleep stays in host memory, or is unloaded. Pure.

The first of these rules that applies decides:

1. `sleep: unload`, or a model that cannot be moved, or whose last move failed: unloaded.
2. The memory of the host is what is needed: unloaded.
3. The host has no room for it, or the model's own cap has not: unloaded.
4. `sleep: host-memory`: host memory.
5. It gives nothing back, or its way back was measured to take as long as a load: unloaded.
6. Otherwise host memory. What was never measured is tried once.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.capacity.footprint import Footprint
from mmsup.supervisor.config.units import age, size_text

LEAST_GAIN_BYTES: Final = 1 << 20
GUESSED_GAIN: Final = 0.5
"""Of what a model holds whose move was never measured."""


class SleepTier(enum.StrEnum):
    HOST_MEMORY = "host-memory"
    UNLOADED = "unloaded"


class MoveRefused(enum.StrEnum):
    """Why a model cannot be moved at all, in words."""

    NOT_ABLE = "its engine cannot move it"
    FAILED = "its last move failed"


@dataclass(frozen=True, slots=True)
class MoveEstimate:
    """Of one worker; measured by the last move, or guessed until there was one."""

    device_gain_bytes: int
    host_growth_bytes: int
    """Negative: it gives host memory back, too."""
    restore_s: float = 0.0
    """0: not known."""
    is_within_cap: bool = True
    """The model's own cap has room for it."""

    def plus(self, other: MoveEstimate) -> MoveEstimate:
        """Of both workers, which move side by side."""
        return MoveEstimate(
            self.device_gain_bytes + other.device_gain_bytes,
            self.host_growth_bytes + other.host_growth_bytes,
            max(self.restore_s, other.restore_s),
            self.is_within_cap and other.is_within_cap,
        )


@dataclass(frozen=True, slots=True)
class TierFacts:
    """One model that goes to sleep."""

    rule: str
    """Its `sleep`."""
    refused: MoveRefused | None
    is_host_needed: bool
    """It goes for the memory of the host."""
    host_room_bytes: int
    estimate: MoveEstimate
    load_s: float
    """0: not known."""


@dataclass(frozen=True, slots=True)
class TierChoice:
    tier: SleepTier
    why: str
    """In words, where it is unloaded."""


def estimate(
    measured: Footprint | None, host_bytes: int, device_held_bytes: int, allocated_bytes: int, cap_bytes: int | None
) -> MoveEstimate:
    """`host_bytes`, `device_held_bytes`: what the worker holds now. `allocated_bytes`: what its engine has allocated of
    that on its device, without the context. `cap_bytes`: its model's own cap of host memory."""
    is_known = measured is not None and measured.offloaded_bytes > 0
    if measured is not None and is_known:
        remaining = measured.gpu_offloaded_bytes or max(device_held_bytes - allocated_bytes, 0)
        gain = max(device_held_bytes - remaining, 0)
        growth = measured.offloaded_bytes - host_bytes
    else:
        gain = min(allocated_bytes or device_held_bytes, device_held_bytes)
        growth = gain if device_held_bytes else -round(host_bytes * GUESSED_GAIN)
    fits = cap_bytes is None or host_bytes + growth <= cap_bytes
    return MoveEstimate(gain, growth, measured.restore_s if measured is not None else 0.0, fits)


def choose(facts: TierFacts) -> TierChoice:
    found, size = facts.estimate, size_text
    if facts.rule == "unload":
        return TierChoice(SleepTier.UNLOADED, "`sleep: unload`")
    if facts.refused is not None:
        return TierChoice(SleepTier.UNLOADED, str(facts.refused))
    if facts.is_host_needed:
        return TierChoice(SleepTier.UNLOADED, "memory of the host is needed")
    if found.host_growth_bytes > 0 and found.host_growth_bytes > facts.host_room_bytes:
        room = size(max(facts.host_room_bytes, 0))
        return TierChoice(SleepTier.UNLOADED, f"the host has room for {room} of {size(found.host_growth_bytes)}")
    if not found.is_within_cap:
        return TierChoice(SleepTier.UNLOADED, "its own `memory` has no room for it")
    if facts.rule == "auto":
        gain_bytes = found.device_gain_bytes - min(found.host_growth_bytes, 0)
        if gain_bytes < LEAST_GAIN_BYTES:
            return TierChoice(SleepTier.UNLOADED, "that would give nothing back")
        if found.restore_s and facts.load_s and found.restore_s >= facts.load_s:
            text = f"it would be back in {age(found.restore_s)}, and a load takes {age(facts.load_s)}"
            return TierChoice(SleepTier.UNLOADED, text)
    return TierChoice(SleepTier.HOST_MEMORY, "")
