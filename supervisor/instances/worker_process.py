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
from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.supervisor.gpu.memory_release import GpuUsage
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.instances.recycle_policy import RefusalCounter
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.linux.oom_events import OomEvents
from mmsup.supervisor.postmortem.memory_history import MemoryHistory
from mmsup.supervisor.processes.child_process import ChildProcess

OOM_READS: Final = 20
OOM_READ_S: Final = 0.005


@dataclass(slots=True)
class WorkerProcess:
    """From the Spawn to the Exited. `life` is None until the keeper has answered."""

    group: Cgroup
    spawned_s: float
    visible_devices: str = ""
    """Its CUDA_VISIBLE_DEVICES."""
    gpu_usage: GpuUsage = field(default_factory=GpuUsage)
    """What it was last seen to hold of its device."""
    has_initial_gpu_usage: bool = False
    """It was seen to hold something there when it served."""
    process: ChildProcess | None = None
    liveness_probe: LivenessProbe | None = None
    ready_s: float = 0.0
    is_linked: bool = False
    """The gateways know this life: they must hear of its end first."""
    condemned: WorkerFailure | None = None
    """It was condemned, for this."""
    load_failure: WorkerFailure | None = None
    """Its load failed, for this."""
    refusals: RefusalCounter = field(default_factory=RefusalCounter)
    stop_sent: bool = False
    """Stop was said: leaving with status 0 is no death."""
    killed_unwanted: bool = False
    """It was killed while it loaded, as nobody wants it any more, or knows how far it is: no death either."""
    exit_timer: asyncio.TimerHandle | None = None
    memory_history: MemoryHistory = field(default_factory=MemoryHistory)
    initial_bytes: int = 0
    """What it held when it was first looked at after it was ready; 0: not known."""
    recycle_at_s: float = 0.0
    """It is not recycled before."""
    artifact_digest: Future[dict[str, Any]] | None = None  # JSON: the digest of what it loaded
    dump_requested_s: float = 0.0
    """When it was asked for its stack; 0: it was not."""
    kill_timer: asyncio.TimerHandle | None = None
    oom_events: OomEvents | None = None

    def watch_oom(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the kernel has taken something of its group for memory."""
        if self.group.folder is None:
            return
        with contextlib.suppress(OSError):
            self.oom_events = OomEvents(self.group.folder)
            asyncio.get_running_loop().add_reader(self.oom_events.fileno(), self._on_oom_event, tell)
            # It may have been there while no brain was: that event is lost, the counter is not.
            asyncio.get_running_loop().call_soon(self._check_oom_count, tell, 0)

    def _on_oom_event(self, tell: Callable[[], None]) -> None:
        assert self.oom_events is not None, "an event of a watch that is closed"
        self.oom_events.clear()
        self._check_oom_count(tell, OOM_READS)

    def _check_oom_count(self, tell: Callable[[], None], looks: int) -> None:
        """The counter is the evidence, and on v1 it rises a moment after the event."""
        reading = self.group.read() if self.oom_events is not None else None
        if reading is not None and reading.oom_kills:
            tell()
        elif reading is not None and looks:
            asyncio.get_running_loop().call_later(OOM_READ_S, self._check_oom_count, tell, looks - 1)

    def infer_ready(self) -> None:
        """At the end: who has come up did not die in its load, even if the brain that heard so did not note it."""
        if self.process is not None and self.process.has_served and not self.ready_s and self.load_failure is None:
            self.ready_s = self.process.progress().since_ns / 1e9

    def was_requested(self, exited: ChildExited) -> bool:
        """Whether this end is the one that was asked for."""
        left = self.stop_sent and exited.status == exit_codes.SUCCESS and not exited.signal
        return self.condemned is None and (left or (self.killed_unwanted and exited.signal == signal.SIGKILL))

    def close(self) -> None:
        """Nothing is expected of it any more."""
        if self.liveness_probe is not None:
            self.liveness_probe.close()
        for timer in (self.exit_timer, self.kill_timer):
            if timer is not None:
                timer.cancel()
        if self.oom_events is not None:
            asyncio.get_running_loop().remove_reader(self.oom_events.fileno())
            self.oom_events.close()
            self.oom_events = None
