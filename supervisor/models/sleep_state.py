"""What is known of a model that is asleep: wanted, and without a worker that serves until somebody asks. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.models.use_rate import UseRate

ASLEEP: Final = "asleep"
"""State of such a model, and of its versions in routes. No instance is in it: there is none, or it is offloaded."""


class SleepPhase(enum.StrEnum):
    AWAKE = "awake"
    ASLEEP = "asleep"
    WAKING = "waking"
    """It is being loaded from sleep, and has neither served nor failed since."""


class SleepReason(enum.StrEnum):
    NOT_ASKED = "not_asked"
    """It was not asked for since the server was started."""
    TTL = "ttl"
    ASKED = "asked"
    """Somebody has put it to sleep."""
    EVICTED = "evicted"


@dataclass(frozen=True, slots=True)
class FailedMove:
    """A move of the model to host memory or back that failed: it is not tried again with these files."""

    stamp: str
    text: str


@dataclass(slots=True, eq=False)
class SleepState:
    """Kept over waking and sleeping, for what it says about the model's last life."""

    phase: SleepPhase = SleepPhase.AWAKE
    reason: SleepReason = SleepReason.NOT_ASKED
    since_s: float = 0.0
    """CLOCK_MONOTONIC, as all times here."""
    config: str = ""
    """ModelConfig as JSON that it is to be loaded with; empty: the repository's."""
    stamp: str = ""
    """Identifies the files to which `metadata` belongs."""
    metadata: dict[str, Metadata] = field(default_factory=dict[str, Metadata])
    """By version, as its workers have reported it."""
    load_s: float | None = None
    """How long its last load took; None if it was never loaded."""
    last_use_s: float = 0.0
    """0: no request since it is known."""
    use: UseRate = field(default_factory=UseRate)
    detail: str = ""
    """Beyond the reason, in words: for whom it was evicted."""
    failure: str = ""
    """Why the last load could not even begin; for the operator."""
    failed_move: FailedMove | None = None

    @property
    def is_asleep(self) -> bool:
        return self.phase is SleepPhase.ASLEEP

    def wake_wait_s(self, spec: ModelSpec | None) -> float:
        """How long requests may wait for a version; 0 if it is awake."""
        if self.phase is SleepPhase.AWAKE or spec is None:
            return 0.0
        return spec.cold_start_timeout_s or spec.load_timeout_s

    def known_metadata(self, stamp: str, version: str) -> Metadata | None:
        return self.metadata.get(version) if stamp == self.stamp else None

    def versions(self, specs: Iterable[ModelSpec], stamp: str) -> tuple[VersionState, ...]:
        """The versions of a model that is asleep, as gateways are sent them. `stamp`: of its files."""
        return tuple(
            VersionState(
                version=each.version,
                state=ASLEEP,
                code="",
                reason="",
                retry_after_s=0.0,
                spec=each,
                metadata=self.known_metadata(stamp, each.version),
                wake_wait_s=self.wake_wait_s(each),
            )
            for each in specs
        )

    @property
    def why(self) -> str:
        return SENTENCES[self.reason] + (f" {self.detail}" if self.detail else "")

    def fall_asleep(self, reason: SleepReason, now_s: float, config: str, detail: str = "") -> None:
        self.phase, self.reason, self.since_s, self.config = SleepPhase.ASLEEP, reason, now_s, config
        self.detail = detail
        self.failure = ""


SENTENCES: Final = {
    SleepReason.NOT_ASKED: "not asked for yet",
    SleepReason.TTL: "it had no request for its `ttl`",
    SleepReason.ASKED: "it was put to sleep by hand",
    SleepReason.EVICTED: "its memory was needed",
}
