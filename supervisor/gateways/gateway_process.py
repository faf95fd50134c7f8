"""One gateway process as the controller runs it: started, configured, followed by another one when it exits.

A gateway occupies a *seat* (one of the configured number) or none: while it comes up to replace another one, and once
it has been replaced and only finishes what its connections have open. What a seat needs outlives its processes: the
listener is the keeper's, the counters lie in a table of shared memory. Restarts follow the backoff of the server's own
processes, and are never given up.
"""

from __future__ import annotations

import asyncio
import enum
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import mmsup
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild, SignalChild
from mmsup.ipc.messages.uploads import UploadedFiles
from mmsup.ipc.stray_signals import signal_name
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.message_channel import MessageChannel
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import KeeperSender
from mmsup.supervisor.linux.idle_group import IdleGroup
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.processes import backoff
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, gateway_spawn, gateway_token

CHANNEL_CLOSED_GRACE_S: Final = 1.0
_FOR_EARLIER_CONTROLLER: Final = (
    gateway_control.CommandRequest,
    gateway_control.RegisterRegion,
    gateway_control.UnregisterRegions,
    gateway_control.Pong,
    gateway_control.GatewayDrained,
)
"""Ignored before its Hello: they belong to the controller before. Its clients got an error for their requests."""


class GatewayRole(enum.StrEnum):
    SERVING = "serving"
    """It has a seat."""
    UNSEATED = "unseated"
    """It comes up to replace another one, or has been replaced. No process follows its exit."""
    STANDBY = "standby"
    """It is started, and not configured: it is sent nothing until a seat needs a process (standby.py)."""


class GatewayOwner(Protocol):
    def on_configured(self, gateway: GatewayProcess) -> None:
        """It has been sent its configuration, and nothing else yet."""

    def on_message(self, gateway: GatewayProcess, message: Any) -> None:  # one of FROM_GATEWAY but the next and Hello
        """It has sent a message."""

    def on_region(
        self, gateway: GatewayProcess, message: gateway_control.RegisterRegion, descriptors: list[int]
    ) -> None:
        """It has sent a region that a client registers, with descriptors, which are the owner's now."""

    def on_exited(self, gateway: GatewayProcess) -> None:
        """Its process has exited; nothing is to be awaited from it."""


@dataclass(slots=True, eq=False)
class GatewayContext:
    settings: Settings
    launch_environment: LaunchEnvironment
    keeper: KeeperSender
    event_log: EventLog
    output: ModelOutput
    addresses: dict[str, str]
    """The keeper's listeners that a gateway serves on: name to address."""
    owner: GatewayOwner = field(init=False)
    """Set before the first process is started."""
    respawn: Callable[[GatewayProcess], None] = field(init=False)
    """Set by the pool: a gateway is to have a process again, now."""
    idle: IdleGroup | None = None
    """The control group in which a standby starts."""
    rng: random.Random = field(default_factory=random.Random)
    can_relay: Callable[[], bool] = lambda: False
    """Whether the gRPC front process could serve."""
    is_stopping: bool = False
    """No process follows another one any more."""


class SeatTimer:
    """The one timer of a seat: when its next process is due, or its present one is killed."""

    def __init__(self, rng: random.Random) -> None:
        self.exits: list[backoff.Exit] = []
        self._rng = rng
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._timer is not None

    def call_later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s, action)

    def start_backoff(self, served_s: float, respawn: Callable[[], None]) -> float:
        """A process has exited after so long: respawn after the delay that is returned, in seconds."""
        self.exits.append(backoff.Exit(time.monotonic(), served_s))
        del self.exits[: -backoff.MAX_EXITS]
        delay_s = backoff.server_delay_s(self.exits, self._rng)
        self.call_later(delay_s, respawn)
        return delay_s

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GatewayProcess:
    def __init__(self, number: int, counter_table: int, context: GatewayContext) -> None:
        """`number`, `counter_table`: those of no other living gateway."""
        self.number = number
        self.counter_table = counter_table
        self.generation = 0
        self.process: ChildProcess | None = None
        self.has_answered = False
        """It has answered its configuration."""
        self.synced = False
        """It has applied the whole state."""
        self.spawned_s = 0.0
        self.role = GatewayRole.SERVING
        self.timer = SeatTimer(context.rng)
        self.started_s = 0.0
        """When it was told to come up, or to serve."""
        self._context = context
        self._kill_reason = ""

    def spawn(self, generation: int = 0) -> None:
        self.timer.cancel()
        self.generation = generation or self.generation + 1
        self._kill_reason = ""
        self.spawned_s = self.started_s = time.monotonic()
        environment, listeners = self._context.launch_environment, tuple(self._context.addresses)
        idle = self._context.idle if self.role is GatewayRole.STANDBY else None
        procs_files = (idle.procs_file,) if idle is not None else ()
        self._context.keeper.send(gateway_spawn(self.number, self.generation, environment, listeners, procs_files))
        failpoint("brain.gateway_said")
        self._record("spawn", f"generation {self.generation} is being started")

    def on_started(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started its process, or hands it over to a new controller."""
        self.process = ChildProcess(self.token, pid, descriptors, GatewayListener(self, self._context))
        if self.role is not GatewayRole.STANDBY:
            self.configure()

    def configure(self) -> None:
        """Send it its configuration and the whole state: it serves from now on."""
        if self.role is GatewayRole.STANDBY:
            self.role = GatewayRole.SERVING
        self.started_s = time.monotonic()
        self.send(_configuration(self, self._context))
        failpoint("brain.configured")
        self._context.owner.on_configured(self)

    def on_exited(self, exited: ChildExited) -> None:
        if self.process is not None:
            self.process.drain_and_close()
        how = f"by signal {signal_name(exited.signal)}" if exited.signal else f"with status {exited.status}"
        self._context.keeper.send(ForgetChild(exited.token))
        tail = self._context.output.finish(str(self.number))
        why = f" because {self._kill_reason}" if self._kill_reason else ""
        if exited.signal or exited.status or self.role is not GatewayRole.UNSEATED:
            self._on_down(f"{_kind(self)} {self.number} ended {how}{why}", pid=exited.pid, tail=tail)
        else:
            self._record("stopped", "left, as it was told to", pid=exited.pid)
            self._clear()

    def on_start_failed(self, text: str) -> None:
        self._on_down(f"{_kind(self)} {self.number} could not be started: {text}")

    def send(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        if self.channel is not None:
            self.channel.send(encode(message), descriptors)

    @property
    def channel(self) -> MessageChannel | None:
        if self.process is None or self.process.is_dead or self.role is GatewayRole.STANDBY:
            return None
        return self.process.channel

    def retire(self) -> None:
        """Another one has its seat: it exits when its connections have closed."""
        self.role = GatewayRole.UNSEATED
        self.send(gateway_control.RetireGateway())
        failpoint("brain.gateway_retired")

    @property
    def is_serving(self) -> bool:
        """It has the whole state, and accepts connections."""
        return self.synced and self.process is not None and self.process.progress().activity is not Activity.STARTING

    @property
    def token(self) -> str:
        """Its process, between controller and keeper."""
        return gateway_token(self.number, self.generation)

    def kill(self, reason: str) -> None:
        """Send SIGKILL to its session, and record the reason when it has exited."""
        if self.process is not None and not self.process.is_dead:
            self._kill_reason = reason
            self._context.keeper.send(SignalChild(self.token, signal.SIGKILL, whole_session=True))

    def _on_down(self, text: str, **fields: Any) -> None:  # JSON, as the event log takes it
        self._clear()
        if self._context.is_stopping:
            return
        if self.role is not GatewayRole.UNSEATED:
            served_s = time.monotonic() - self.started_s
            delay_s = self.timer.start_backoff(served_s, lambda: self._context.respawn(self))
            fields["next_delay_s"] = round(delay_s, 3)
        self._record("exit", text, **fields)

    def _clear(self) -> None:
        self.timer.cancel()
        self.process = None
        self.has_answered = self.synced = False
        self._context.owner.on_exited(self)

    def _record(self, event: str, text: str, **fields: Any) -> None:  # as above
        generation, number = self.generation, self.number
        self._context.event_log.record(f"{_kind(self)}_{event}", text, generation=generation, gateway=number, **fields)


class GatewayListener:
    """Receives what one process of a gateway sends and prints."""

    def __init__(self, gateway: GatewayProcess, context: GatewayContext) -> None:
        self._gateway = gateway
        self._context = context

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        gateway = self._gateway
        try:
            message = decode(data, gateway_control.FROM_GATEWAY)
        except WireError as error:
            close_fds(descriptors)
            gateway.kill(f"it sent an invalid message: {error}")
            return
        if isinstance(message, gateway_control.RegisterRegion) and gateway.has_answered:
            self._context.owner.on_region(gateway, message, descriptors)
            return
        if isinstance(message, gateway_control.CommandRequest) and gateway.has_answered:
            _take_upload(message, descriptors)
        close_fds(descriptors)
        if isinstance(message, Hello):
            gateway.has_answered = True
            if message.wire_version != WIRE_VERSION:
                gateway.kill(f"it speaks wire {message.wire_version}, this server {WIRE_VERSION}")
        elif gateway.has_answered or not isinstance(message, _FOR_EARLIER_CONTROLLER):
            self._context.owner.on_message(gateway, message)

    def on_closed(self) -> None:
        """It has closed its channel or does not read it: kill it, unless its exit comes first."""
        kill = self._gateway.kill
        if self._gateway.process is not None:
            self._gateway.timer.call_later(CHANNEL_CLOSED_GRACE_S, lambda: kill("it closed its control channel"))

    def on_crash_output(self, text: str) -> None:
        """It writes a stack trace to its crash pipe: its exit follows."""

    def on_output(self, data: bytes) -> None:
        self._context.output.append(str(self._gateway.number), data)


def _take_upload(message: gateway_control.CommandRequest, descriptors: list[int]) -> None:
    """Put the files that came with a command among its arguments, which own their descriptor from now on."""
    sizes: Any = message.arguments.pop("upload", None)  # JSON of a gateway
    if isinstance(sizes, dict) and len(descriptors) == 1:
        message.arguments["upload"] = UploadedFiles(descriptors.pop(), dict(cast("dict[str, int]", sizes)))


def _kind(gateway: GatewayProcess) -> str:
    return "spare" if gateway.role is GatewayRole.STANDBY else "gateway"


def _configuration(gateway: GatewayProcess, context: GatewayContext) -> gateway_control.ConfigureGateway:
    settings = context.settings
    return gateway_control.ConfigureGateway(
        wire_version=WIRE_VERSION,
        seat=gateway.counter_table,
        generation=gateway.generation,
        server_name=settings.server_name,
        server_version=mmsup.__version__,
        max_body_bytes=settings.max_body_bytes,
        arena_bytes=settings.arena_bytes,
        restart_grace_s=settings.restart_grace_s,
        max_requests=settings.max_requests,
        max_request_bytes=settings.max_request_bytes,
        front=settings.front,
        max_cold_requests=settings.max_cold_requests,
        max_cold_bytes=settings.max_cold_bytes,
        cache_bytes=settings.cache_bytes // settings.gateway_seats,
        allow_hosts=settings.allow_hosts,
        grpc_front=settings.grpc_front,
        can_relay=context.can_relay(),
        allow_model_uploads=settings.allow_model_uploads,
        allow_code_uploads=settings.allow_code_uploads,
        grpc_keepalive=settings.grpc_keepalive,
        client_memory=settings.client_memory,
        client_memory_uids=settings.client_memory_uids,
    )
