"""One life of an instance as the brain keeps it: process, group, times, and what had been said about its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import Exited
from mmsup.supervisor.gpu.memory_release import Claim
from mmsup.supervisor.instances.context import Judgement
from mmsup.supervisor.instances.liveness_probe import Watch
from mmsup.supervisor.instances.recycle_policy import Refusals
from mmsup.supervisor.linux.cgroup import Group
from mmsup.supervisor.linux.oom_events import OomWatch
from mmsup.supervisor.postmortem.memory_history import Curve
from mmsup.supervisor.processes.child_process import Life

OOM_LOOKS: Final = 20
OOM_LOOK_S: Final = 0.005


@dataclass(slots=True)
class Tenure:
    """From the Spawn to the Exited. `life` is None until the keeper has answered."""

    group: Group
    spawned_s: float
    visible_devices: str = ""
    """Its CUDA_VISIBLE_DEVICES."""
    claim: Claim = field(default_factory=Claim)
    """What it was last seen to hold of its device."""
    was_weighed: bool = False
    """It was seen to hold something there when it served."""
    life: Life | None = None
    watch: Watch | None = None
    ready_s: float = 0.0
    linked: bool = False
    """The gateways know this life: they must hear of its end first."""
    judgement: Judgement | None = None
    """It was condemned, for this."""
    failed: Judgement | None = None
    """Its load failed, for this."""
    refusals: Refusals = field(default_factory=Refusals)
    told_to_leave: bool = False
    """Stop was said: leaving with status 0 is no death."""
    dropped: bool = False
    """It was killed while it loaded, as nobody wants it any more, or knows how far it is: no death either."""
    end_timer: asyncio.TimerHandle | None = None
    curve: Curve = field(default_factory=Curve)
    first_bytes: int = 0
    """What it held when it was first looked at after it was ready; 0: not known."""
    recycle_at_s: float = 0.0
    """It is not recycled before."""
    artefact: Future[dict[str, Any]] | None = None  # JSON: the digest of what it loaded
    asked_s: float = 0.0
    """When it was asked for its stack; 0: it was not."""
    kill_timer: asyncio.TimerHandle | None = None
    oom: OomWatch | None = None

    def hear_oom(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the kernel has taken something of its group for memory."""
        if self.group.folder is None:
            return
        with contextlib.suppress(OSError):
            self.oom = OomWatch(self.group.folder)
            asyncio.get_running_loop().add_reader(self.oom.fileno(), self._oom_woke, tell)
            # It may have been there while no brain was: that event is lost, the counter is not.
            asyncio.get_running_loop().call_soon(self._count_oom, tell, 0)

    def _oom_woke(self, tell: Callable[[], None]) -> None:
        assert self.oom is not None, "an event of a watch that is closed"
        self.oom.clear()
        self._count_oom(tell, OOM_LOOKS)

    def _count_oom(self, tell: Callable[[], None], looks: int) -> None:
        """The counter is the evidence, and on v1 it rises a moment after the event."""
        reading = self.group.read() if self.oom is not None else None
        if reading is not None and reading.oom_kills:
            tell()
        elif reading is not None and looks:
            asyncio.get_running_loop().call_later(OOM_LOOK_S, self._count_oom, tell, looks - 1)

    def read_page(self) -> None:
        """At the end: who has come up did not die in its load, even if the brain that heard so did not note it."""
        if self.life is not None and self.life.has_come_up and not self.ready_s and self.failed is None:
            self.ready_s = self.life.progress().since_ns / 1e9

    def is_orderly(self, exited: Exited) -> bool:
        """Whether this end is the one that was asked for."""
        left = self.told_to_leave and exited.status == exit_codes.DONE and not exited.signal
        return self.judgement is None and (left or (self.dropped and exited.signal == signal.SIGKILL))

    def close(self) -> None:
        """Nothing is expected of it any more."""
        if self.watch is not None:
            self.watch.close()
        for timer in (self.end_timer, self.kill_timer):
            if timer is not None:
                timer.cancel()
        if self.oom is not None:
            asyncio.get_running_loop().remove_reader(self.oom.fileno())
            self.oom.close()
            self.oom = None
