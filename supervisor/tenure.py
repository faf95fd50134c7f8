"""One life of an instance as the brain keeps it: process, group, times, and what had been said about its end."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

from mmsup.ipc import exits
from mmsup.ipc.messages import Exited
from mmsup.supervisor.group import Group
from mmsup.supervisor.life import Life
from mmsup.supervisor.site import Judgement
from mmsup.supervisor.watch import Watch


@dataclass(slots=True)
class Tenure:
    """From the Spawn to the Exited. `life` is None until the keeper has answered."""

    group: Group
    spawned_s: float
    visible_devices: str = ""
    """Its CUDA_VISIBLE_DEVICES."""
    life: Life | None = None
    watch: Watch | None = None
    ready_s: float = 0.0
    linked: bool = False
    """The gateways know this life: they must hear of its end first."""
    judgement: Judgement | None = None
    """It was condemned, for this."""
    failed: Judgement | None = None
    """Its load failed, for this."""
    told_to_leave: bool = False
    """Stop was said: leaving with status 0 is no death."""
    dropped: bool = False
    """It was killed while it loaded, because nobody wants it any more: that is no death either."""
    counted: bool = True
    """Whether its end is held against its model."""
    end_timer: asyncio.TimerHandle | None = None

    def is_orderly(self, exited: Exited) -> bool:
        """Whether this end is the one that was asked for."""
        left = self.told_to_leave and exited.status == exits.DONE and not exited.signal
        return self.judgement is None and (left or (self.dropped and exited.signal == signal.SIGKILL))

    def close(self) -> None:
        """Nothing is expected of it any more."""
        if self.watch is not None:
            self.watch.close()
        if self.end_timer is not None:
            self.end_timer.cancel()
