"""Starts zygotes, kills them, and keeps what they print; which there should be is decided in pool.py."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.idle_start import SPARE_S, IdleStart
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, zygote_name, zygote_spawn
from mmsup.supervisor.zygotes.start_method import ZygoteKey
from mmsup.supervisor.zygotes.zygote_process import Zygote, ZygoteHooks

MEMORY_BYTES: Final = 2 << 30
"""The limit of a zygote's control group, to which pages that its workers share stay charged."""


@dataclass(frozen=True, slots=True)
class PoolContext:
    send: Callable[[object], None]
    """To the keeper."""
    environment: LaunchEnvironment
    cgroups: CgroupBackend
    cleanup: Cleanup
    event_log: EventLog
    output: ModelOutput
    mode: str
    """The server's option `zygotes`."""
    generation: int
    """Of the controller: a part of each name, so that none is used twice."""
    does_any_serve: Callable[[], bool]


class ZygoteLauncher:
    def __init__(self, context: PoolContext) -> None:
        self._context = context
        self._hooks = ZygoteHooks(self._on_ready, self._on_output, self.kill)
        self._number = 0

    def start(self, key: ZygoteKey) -> Zygote:
        """Ask the keeper for one; OSError if the kernel refuses it a control group."""
        self._number += 1
        number, generation, context = self._number, self._context.generation, self._context
        group = context.cgroups.create(zygote_name(number, generation), MEMORY_BYTES)
        note = json.dumps({"interpreter": key.interpreter, "engine_set": key.engine_set})
        zygote = Zygote(key, number, generation, group, time.monotonic(), self._hooks)
        procs_files, idle = group.procs_files, context.cgroups.idle
        if idle is not None and context.does_any_serve():
            zygote.idle_start = IdleStart(SPARE_S, lambda: idle.release(group))
            procs_files = idle.admit(group)
        name = number, generation
        context.send(zygote_spawn(key.interpreter, key.engine_set, name, context.environment, procs_files, note))
        return zygote

    def restore(self, number: int, generation: int, note: str) -> Zygote:
        """One that an earlier controller has started."""
        self._number = max(self._number, number)
        group, idle = self._context.cgroups.group(zygote_name(number, generation)), self._context.cgroups.idle
        if idle is not None:
            idle.release(group)
        return Zygote(ZygoteKey(**json.loads(note)), number, generation, group, time.monotonic(), self._hooks)

    def kill(self, zygote: Zygote) -> None:
        """Nothing is lost with a zygote, so it is asked nothing."""
        self._context.send(SignalChild(zygote.token, signal.SIGKILL, whole_session=True))
        if zygote.idle_start is not None:
            zygote.idle_start.end()  # behind others it would take long to end

    def clean_up(self, zygote: Zygote) -> None:
        """It has exited."""
        zygote.drain_and_close()
        self._context.output.finish(zygote.name)
        self._context.cleanup.add(zygote.group, "", "")

    def _on_ready(self, zygote: Zygote, import_s: float) -> None:
        if zygote.ready_s:
            return
        zygote.ready_s = time.monotonic()
        pid = zygote.process.pid if zygote.process is not None else 0
        text = f"workers with {zygote.key.engine_set} are forked from now on"
        self._context.event_log.record("zygote_ready", text, zygote=zygote.number, pid=pid, import_s=round(import_s, 3))

    def _on_output(self, zygote: Zygote, data: bytes) -> None:
        self._context.output.append(zygote.name, data)
