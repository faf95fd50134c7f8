"""One worker process as the controller records it: from the request to start it until its exit has been handled."""

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
from mmsup.ipc.paths import WorkerId
from mmsup.supervisor.gpu.memory_release import GpuUsage
from mmsup.supervisor.instances.context import SharedProcess, WorkerFailure
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.instances.recycle_policy import RecycleState
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.linux.oom_events import OomEvents
from mmsup.supervisor.postmortem.memory_history import MemoryHistory
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.idle_start import IdleStart

OOM_READS: Final = 20
OOM_READ_S: Final = 0.005


@dataclass(slots=True)
class GpuAssignment:
    device: str = ""
    """Its CUDA_VISIBLE_DEVICES; empty: it runs on the CPU."""
    usage: GpuUsage = field(default_factory=GpuUsage)
    """As last seen."""
    is_measured: bool = False
    """It was seen to hold memory when it was ready."""
    offloaded_bytes: int = 0
    """What it gave back of its device when its model was offloaded; 0 while it serves."""


@dataclass(slots=True)
class Termination:
    """How the end of a worker was brought about, as far as it was the controller's doing."""

    condemned: WorkerFailure | None = None
    """It was ready, and is to be killed for this."""
    load_failure: WorkerFailure | None = None
    move_failure: str = ""
    """Why its model could not be offloaded or restored."""
    stop_sent: bool = False
    killed_unwanted: bool = False
    """It was killed while it loaded, because nobody wants it any more or its progress is unknown."""
    dump_requested_s: float = 0.0
    """When it was asked for a stack dump; 0: never."""
    exit_timer: asyncio.TimerHandle | None = None
    kill_timer: asyncio.TimerHandle | None = None

    def was_requested(self, exited: ChildExited) -> bool:
        """Whether the worker exited as it was told to; then the exit is no failure."""
        stopped = self.stop_sent and exited.status == exit_codes.SUCCESS and not exited.signal
        return self.condemned is None and (stopped or (self.killed_unwanted and exited.signal == signal.SIGKILL))

    def cancel_timers(self) -> None:
        for timer in (self.exit_timer, self.kill_timer):
            if timer is not None:
                timer.cancel()


class OomWatch:
    """Calls `on_kill` when the kernel's out-of-memory killer has ended a process of a control group."""

    def __init__(self, group: Cgroup, on_kill: Callable[[], None]) -> None:
        self._group = group
        self._on_kill = on_kill
        self._events: OomEvents | None = None
        self._loop = asyncio.get_running_loop()
        if group.folder is not None:
            with contextlib.suppress(OSError):
                self._events = OomEvents(group.folder)
                self._loop.add_reader(self._events.fileno(), self._on_event)
                # An event from before this controller is lost; the counter is not.
                self._loop.call_soon(self._check, 0)

    def close(self) -> None:
        if self._events is not None:
            self._loop.remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

    def _on_event(self) -> None:
        assert self._events is not None, "an event of a watch that is closed"
        self._events.clear()
        self._check(OOM_READS)

    def _check(self, reads_left: int) -> None:
        """The counter is the evidence; on cgroup v1 it rises a moment after the event."""
        reading = self._group.read() if self._events is not None else None
        if reading is not None and reading.oom_kills:
            self._on_kill()
        elif reading is not None and reads_left:
            self._loop.call_later(OOM_READ_S, self._check, reads_left - 1)


@dataclass(slots=True)
class Watches:
    """What looks at its process from time to time."""

    liveness: LivenessProbe | None = None
    oom: OomWatch | None = None
    start: IdleStart | None = None

    def close(self) -> None:
        if self.liveness is not None:
            self.liveness.close()
        if self.oom is not None:
            self.oom.close()
        if self.start is not None:
            self.start.cancel()


@dataclass(slots=True)
class WorkerProcess:
    """`process` is None until the keeper has answered."""

    group: Cgroup
    spawned_s: float
    gpu: GpuAssignment = field(default_factory=GpuAssignment)
    process: ChildProcess | None = None
    shared: SharedProcess | None = None
    """The process of its co-location group, in which it is; `group` is that of the process then."""
    ready_s: float = 0.0
    is_linked: bool = False
    """The gateways route to it, so they are the first to be told of its end."""
    termination: Termination = field(default_factory=Termination)
    watches: Watches = field(default_factory=Watches)
    memory_history: MemoryHistory = field(default_factory=MemoryHistory)
    recycling: RecycleState = field(default_factory=RecycleState)
    artifact_digest: Future[dict[str, Any]] | None = None  # JSON: the digest of the files that it loaded

    @property
    def load_s(self) -> float:
        """How long its load took; 0 if it is not ready."""
        return round(self.ready_s - self.spawned_s, 3) if self.ready_s else 0.0

    @property
    def sharers(self) -> int:
        """How many models are in its process."""
        return max(len(self.shared.members), 1) if self.shared is not None else 1

    @property
    def gives_device_back(self) -> bool:
        """Whether its end frees what it held on its device: in a group, of the last one, when the process is gone."""
        return self.shared is None or (self.shared.has_exited and self.sharers == 1)

    def is_suspect(self, worker: WorkerId) -> bool:
        """Whether what is found of its process may be the doing of this worker, and not of another one in it."""
        return self.shared is None or self.shared.may_have_caused(worker)

    def infer_ready(self) -> None:
        """Takes the status page's word that it was ready: the controller that heard so may have died before noting it,
        and then this exit must not count as a failed load."""
        if self.ready_s or self.process is None or self.termination.load_failure is not None:
            return
        if self.process.has_served:
            self.ready_s = self.process.progress().since_ns / 1e9

    def close(self) -> None:
        self.watches.close()
        self.termination.cancel_timers()
