"""One zygote process as the controller sees it, from the request to start it until its exit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.ipc.messages.zygote_control import FROM_ZYGOTE, ConfigureZygote, ZygoteReady
from mmsup.ipc.stray_signals import signal_name
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.linux.cgroup import Cgroup, CgroupUsage
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.idle_start import IdleStart
from mmsup.supervisor.processes.launch_spec import zygote_name, zygote_token
from mmsup.supervisor.zygotes.start_method import ZygoteKey

START_LIMIT_S: Final = 120.0
"""For its imports; then it is killed."""


@dataclass(frozen=True, slots=True)
class ZygoteHooks:
    on_ready: Callable[[Zygote, float], None]
    """With the seconds that its imports took."""
    on_output: Callable[[Zygote, bytes], None]
    kill: Callable[[Zygote], None]


class Zygote:
    def __init__(
        self, key: ZygoteKey, number: int, generation: int, group: Cgroup, started_s: float, hooks: ZygoteHooks
    ) -> None:
        self.key = key
        self.number = number
        self.generation = generation
        self.group = group
        self.started_s = started_s
        self.process: ChildProcess | None = None
        self.ready_s = 0.0
        """When it became ready, of this controller's knowledge; 0 before."""
        self.is_ending = False
        """It is killed, since nobody uses it or its code is old."""
        self.unused_since_s: float | None = None
        self.idle_start: IdleStart | None = None
        """While it imports beside others who serve."""
        self._hooks = hooks
        self._limit: asyncio.TimerHandle | None = None

    @property
    def token(self) -> str:
        return zygote_token(self.number, self.generation)

    @property
    def name(self) -> str:
        """As its control group."""
        return zygote_name(self.number, self.generation)

    @property
    def is_ready(self) -> bool:
        return self.ready_s > 0 and not self.is_ending

    def adopt(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started it: have it import its engine. One that has done so answers at once."""
        self.process = ChildProcess(self.token, pid, descriptors, self)
        if self.idle_start is not None:
            self.idle_start.pid = pid
        self.process.channel.send(encode(ConfigureZygote(WIRE_VERSION, self.key.engine_set)))
        self._limit = asyncio.get_running_loop().call_later(START_LIMIT_S, self._hooks.kill, self)

    def close(self) -> None:
        """Let go of it; the process goes on."""
        self._cancel_limits()
        process, self.process = self.process, None  # it refers to this object, and its page is unmapped with it
        if process is not None:
            process.close()

    def drain_and_close(self) -> None:
        """It has exited."""
        self._cancel_limits()
        process, self.process = self.process, None
        if process is not None:
            process.drain_and_close()

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        close_fds(descriptors)
        try:
            message: ZygoteReady = decode(data, FROM_ZYGOTE)
        except WireError:
            self._hooks.kill(self)
            return
        self._cancel_limit()
        if self.idle_start is not None:
            self.idle_start.end()
        self._hooks.on_ready(self, message.import_s)

    def on_closed(self) -> None:
        """Its exit follows, or it has closed the channel on purpose."""
        self._hooks.kill(self)

    def on_crash_output(self, text: str) -> None:
        """Its exit follows, and says the signal."""

    def on_output(self, data: bytes) -> None:
        self._hooks.on_output(self, data)

    def _cancel_limits(self) -> None:
        self._cancel_limit()
        if self.idle_start is not None:
            self.idle_start.cancel()

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()


def exit_text(exited: ChildExited, usage: CgroupUsage | None) -> str:
    """Why a zygote has ended, in words. `usage`: of its control group, None without one."""
    if exited.signal and usage is not None and usage.oom_kills:
        return f"it was killed by the kernel for memory, of which it used {usage.peak_bytes >> 20} MiB"
    if exited.signal:
        return f"it was ended by {signal_name(exited.signal)}"
    if exited.status == exit_codes.ZYGOTE_OUTDATED:
        return "the files of its code have changed"
    if exited.status == exit_codes.ZYGOTE_UNFIT:
        return "it could not fork safely"
    return f"it exited with status {exited.status}"
