"""One gateway place: its process, kept alive for ever, told everything anew after each start.

The place outlives its processes: the listener is the keeper's, the counters lie in the place's table. A gateway that
dies or hangs is followed by another, by the same curve as a worker's, and never given up.

A *spare* is a gateway that was started and not configured: it has imported everything, holds no memory, accepts nobody
and hears nothing until a place needs a process (decisions/012-spare.md).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from typing import Any, Final, Protocol

import mmsup
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.gateway_control import (
    FROM_GATEWAY,
    CommandRequest,
    ConfigureGateway,
    GatewayDrained,
    LinkWorker,
    Pong,
    RetireGateway,
)
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild, SignalChild
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import KeeperSender, WorkerEndpoint
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.observability.model_output import ModelOutput
from mmsup.supervisor.postmortem.cause import signal_name
from mmsup.supervisor.processes import backoff
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, gateway_spawn, gateway_token

STALE_S: Final = 2.0
"""Its loop beats every 100 ms. A kill resets every connection, and a busy machine wakes nobody on time."""
STANDBY_STALE_S: Final = 5.0
"""It beats every 500 ms, and nobody waits for it: a machine that is so busy is not to start another one."""
START_S: Final = 60.0
CHANNEL_CLOSED_GRACE_S: Final = 1.0
_FOR_EARLIER_CONTROLLER: Final = (CommandRequest, Pong, GatewayDrained)
"""What a gateway said before its Hello to us: it has answered its clients for the questions itself, and the rest is no
answer to what we said."""


class GatewayOwner(Protocol):
    """Whom a gateway belongs to."""

    def send_state(self, gateway: GatewayProcess) -> None:
        """Tell a gateway that was just configured everything there is."""
        ...

    def on_message(self, gateway: GatewayProcess, message: Any) -> None:  # one of FROM_GATEWAY
        """A message that is not about the gateway itself."""
        ...

    def on_exited(self, gateway: GatewayProcess) -> None:
        """It is dead: nothing is to be awaited from it."""
        ...

    def respawn(self, gateway: GatewayProcess) -> None:
        """It is to have a process again, now."""
        ...


class GatewayProcess:
    """One place."""

    def __init__(self, number: int, table: int, house: GatewayOwner, site: GatewayContext) -> None:
        """`place`: no other living one has this number. `table`: nor counts in this one."""
        self.number = number
        self.counter_table = table
        self.generation = 0
        self.process: ChildProcess | None = None
        self.has_answered = False
        """It has answered Configure."""
        self.synced = False
        """It has heard everything there is."""
        self.spawned_s = 0.0
        self.respawns = True
        """Another process follows its end. Not while it has yet to come up beside another one, nor once it leaves."""
        self.is_standby = False
        """It is told nothing: neither what it is nor what there is."""
        self._owner = house
        self._context = site
        self._started_s = 0.0
        """When it was told to come up, or to serve."""
        self._exits: list[backoff.Exit] = []
        self._kill_reason = ""
        """Why we killed this process, if we did."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start its process, unless it lives, or its next life has its time already."""
        if self.process is None and self._timer is None:
            self._owner.respawn(self)

    def spawn(self, generation: int = 0) -> None:
        """Start its process, now; none is due later then. Of this generation, if one is given."""
        self.close()
        self.generation = generation or self.generation + 1
        self._kill_reason = ""
        self.spawned_s = self._started_s = time.monotonic()
        site = self._context
        site.keeper.send(gateway_spawn(self.number, self.generation, site.launch_environment, site.listeners))
        failpoint("brain.gateway_said")
        self._record(f"{self._role}_spawn", f"life {self.generation} is being started")

    def on_started(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started it, or gives it to a new brain: begin anew."""
        self.process = ChildProcess(self.token, pid, descriptors, self)
        if not self.is_standby:
            self.configure()

    def configure(self) -> None:
        """Tell it what it is, and everything there is: it serves from now on."""
        self.is_standby = False
        self._started_s = time.monotonic()
        settings = self._context.settings
        configure = ConfigureGateway(
            wire_version=WIRE_VERSION,
            seat=self.counter_table,
            generation=self.generation,
            server_name=settings.server_name,
            server_version=mmsup.__version__,
            max_body_bytes=settings.max_body_bytes,
            arena_bytes=settings.arena_bytes,
            restart_grace_s=settings.restart_grace_s,
            max_requests=settings.max_requests,
            max_request_bytes=settings.max_request_bytes,
            front=settings.front,
        )
        self.send(configure)
        failpoint("brain.configured")
        self._owner.send_state(self)

    def take_seat_of(self, dead: GatewayProcess) -> None:
        """A spare gets the place of one that ended, and with it its history and its counters: what that one had open
        is over when somebody counts on."""
        self._exits, self.counter_table = dead._exits, dead.counter_table
        self._record("gateway_spawn", f"the spare, life {self.generation}, takes the place of gateway {dead.number}")

    def on_exited(self, exited: ChildExited) -> None:
        """It is dead and reaped: another one follows."""
        if self.process is not None:
            self.process.drain_and_close()
        how = f"by signal {signal_name(exited.signal)}" if exited.signal else f"with status {exited.status}"
        self._context.keeper.send(ForgetChild(exited.token))
        tail = self._context.output.finish(str(self.number))
        why = f" because {self._kill_reason}" if self._kill_reason else ""
        if exited.signal or exited.status or self.respawns:
            self._schedule_respawn(f"{self._role} {self.number} ended {how}{why}", pid=exited.pid, tail=tail)
        else:
            self._record("gateway_stopped", "left, as it was told to", pid=exited.pid)
            self._clear()

    def on_start_failed(self, text: str) -> None:
        """The keeper could not start it."""
        self._schedule_respawn(f"{self._role} {self.number} could not be started: {text}")

    def send(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        """Tell it something, if it is there."""
        if self.process is not None and not self.process.is_dead and not self.is_standby:
            self.process.channel.send(encode(message), descriptors)

    def link(self, serving: WorkerEndpoint) -> None:
        """Tell a worker of it, then it of the worker: a fresh pair between the two."""
        if self.process is None or self.process.is_dead or self.is_standby:
            return
        failpoint("brain.pair")
        ours, theirs = ControlChannel.pair()
        try:
            identity = f"g{self.number}.{self.generation}.{secrets.token_hex(6)}".encode()
            serving.process.channel.send(encode(AttachGateway(self.number, identity)), (theirs.fileno(),))
            failpoint("brain.attached")
            link = LinkWorker(*serving.worker_id, serving.address, identity, serving.spec, serving.metadata)
            self.send(link, (serving.process.pidfd, serving.process.page_fd, ours.fileno()))
        finally:
            ours.close()
            theirs.close()

    def check(self, now_s: float) -> None:
        """Kill it if its loop does not turn."""
        if self.process is None or self.process.is_dead:
            return
        progress = self.process.progress()
        stale_s = STANDBY_STALE_S if self.is_standby else STALE_S
        if progress.activity is Activity.STARTING:
            if now_s - self._started_s > START_S:
                self.kill(f"it had not come up within {START_S:g} s")
        elif now_s - progress.heartbeat_ns / 1e9 > stale_s:
            self.kill(f"its loop had not come round for {stale_s:g} s")

    def retire(self) -> None:
        """Another one serves in its stead: it may leave when its connections have."""
        self.respawns = False
        self.send(RetireGateway())
        failpoint("brain.gateway_retired")

    @property
    def is_serving(self) -> bool:
        """It knows everything, and accepts connections."""
        return self.synced and self.process is not None and self.process.progress().activity is not Activity.STARTING

    @property
    def is_standby_ready(self) -> bool:
        """It is a spare that has come up."""
        return self.is_standby and self.process is not None and self.process.progress().activity is Activity.STANDBY

    def close(self) -> None:
        """No next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def token(self) -> str:
        """Its process, between brain and keeper."""
        return gateway_token(self.number, self.generation)

    # Ears of its life.

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        """A message of the gateway's."""
        close_fds(descriptors)
        try:
            message = decode(data, FROM_GATEWAY)
        except WireError as error:
            self.kill(f"it sent what is no message of ours: {error}")
            return
        if isinstance(message, Hello):
            self.has_answered = True
            if message.wire_version != WIRE_VERSION:
                self.kill(f"it speaks wire {message.wire_version}, this server {WIRE_VERSION}")
        elif self.has_answered or not isinstance(message, _FOR_EARLIER_CONTROLLER):
            self._owner.on_message(self, message)

    def on_closed(self) -> None:
        """It closed its channel, or does not read it; a death says so too."""
        if self.process is not None:
            text = "it closed its control channel"
            self._timer = asyncio.get_running_loop().call_later(CHANNEL_CLOSED_GRACE_S, self.kill, text)

    def on_crash_output(self, text: str) -> None:
        """Its crash pipe spoke; the exit follows."""

    def on_output(self, data: bytes) -> None:
        """Its log."""
        self._context.output.append(str(self.number), data)

    def kill(self, why: str) -> None:
        """End it, and say why."""
        if self.process is not None and not self.process.is_dead:
            self._kill_reason = why
            self._context.keeper.send(SignalChild(self.token, signal.SIGKILL, whole_session=True))

    def _schedule_respawn(self, text: str, **fields: Any) -> None:  # JSON, as the journal takes it
        self._clear()
        if self._context.stopping():
            return
        if not self.respawns:
            self._record(f"{self._role}_exit", text, **fields)
            return
        now_s = time.monotonic()
        self._exits.append(backoff.Exit(now_s, now_s - self._started_s))
        del self._exits[: -backoff.MAX_EXITS]
        delay_s = backoff.server_delay_s(self._exits, self._context.rng)
        self._record(f"{self._role}_exit", text, next_delay_s=round(delay_s, 3), **fields)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._owner.respawn, self)

    def _clear(self) -> None:
        self.close()
        self.process = None
        self.has_answered = self.synced = False
        self._owner.on_exited(self)

    @property
    def _role(self) -> str:
        return "spare" if self.is_standby else "gateway"

    def _record(self, name: str, text: str, **fields: Any) -> None:  # as above
        self._context.event_log.record(name, text, generation=self.generation, gateway=self.number, **fields)


class GatewayContext:
    """What all gateway places act upon."""

    def __init__(
        self,
        settings: Settings,
        place: LaunchEnvironment,
        keeper: KeeperSender,
        journal: EventLog,
        logbook: ModelOutput,
    ) -> None:
        self.settings = settings
        self.launch_environment = place
        self.keeper = keeper
        self.event_log = journal
        self.output = logbook
        self.rng = random.Random()
        self.listeners: tuple[str, ...] = ()
        """Names of the keeper's listeners that a gateway serves on."""
        self.is_stopping = False

    def stopping(self) -> bool:
        """Whether no process is to follow another."""
        return self.is_stopping
