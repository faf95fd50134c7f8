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
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages import gateway_control, handshake, keeper_control, worker_control
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import Seqpacket, close_all
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.instances.context import KeeperSays, Serving
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.observability.model_output import Logbook
from mmsup.supervisor.postmortem.cause import signal_name
from mmsup.supervisor.processes import backoff
from mmsup.supervisor.processes.child_process import Life
from mmsup.supervisor.processes.launch_spec import Place, gateway_spawn, gateway_token

STALE_S: Final = 2.0
"""Its loop beats every 100 ms. A kill resets every connection, and a busy machine wakes nobody on time."""
SPARE_STALE_S: Final = 5.0
"""It beats every 500 ms, and nobody waits for it: a machine that is so busy is not to start another one."""
START_S: Final = 60.0
CLOSED_S: Final = 1.0
_OF_A_DEAD_BRAIN: Final = (gateway_control.Ask, gateway_control.Pong, gateway_control.Drained)
"""What a gateway said before its Hello to us: it has answered its clients for the questions itself, and the rest is no
answer to what we said."""


class House(Protocol):
    """Whom a gateway belongs to."""

    def introduce(self, gateway: Gateway) -> None:
        """Tell a gateway that was just configured everything there is."""
        ...

    def heard(self, gateway: Gateway, message: Any) -> None:  # one of FROM_GATEWAY
        """A message that is not about the gateway itself."""
        ...

    def gone(self, gateway: Gateway) -> None:
        """It is dead: nothing is to be awaited from it."""
        ...

    def follow(self, gateway: Gateway) -> None:
        """It is to have a process again, now."""
        ...


class Gateway:
    """One place."""

    def __init__(self, place: int, table: int, house: House, site: GatewaySite) -> None:
        """`place`: no other living one has this number. `table`: nor counts in this one."""
        self.place = place
        self.table = table
        self.generation = 0
        self.life: Life | None = None
        self.greeted = False
        """It has answered Configure."""
        self.synced = False
        """It has heard everything there is."""
        self.spawned_s = 0.0
        self.follows = True
        """Another process follows its end. Not while it has yet to come up beside another one, nor once it leaves."""
        self.is_spare = False
        """It is told nothing: neither what it is nor what there is."""
        self._house = house
        self._site = site
        self._told_s = 0.0
        """When it was told to come up, or to serve."""
        self._ends: list[backoff.End] = []
        self._why = ""
        """Why we killed this process, if we did."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Start its process, unless it lives, or its next life has its time already."""
        if self.life is None and self._timer is None:
            self._house.follow(self)

    def spawn(self, generation: int = 0) -> None:
        """Start its process, now; none is due later then. Of this generation, if one is given."""
        self.close()
        self.generation = generation or self.generation + 1
        self._why = ""
        self.spawned_s = self._told_s = time.monotonic()
        site = self._site
        site.keeper.say(gateway_spawn(self.place, self.generation, site.place, site.listeners))
        faultpoint("brain.gateway_said")
        self._record(f"{self._role}_spawn", f"life {self.generation} is being started")

    def born(self, pid: int, descriptors: list[int]) -> None:
        """The keeper has started it, or gives it to a new brain: begin anew."""
        self.life = Life(self.token, pid, descriptors, self)
        if not self.is_spare:
            self.configure()

    def configure(self) -> None:
        """Tell it what it is, and everything there is: it serves from now on."""
        self.is_spare = False
        self._told_s = time.monotonic()
        settings = self._site.settings
        configure = gateway_control.Configure(
            wire=handshake.WIRE_VERSION,
            gateway=self.table,
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
        self.say(configure)
        faultpoint("brain.configured")
        self._house.introduce(self)

    def inherit(self, dead: Gateway) -> None:
        """A spare gets the place of one that ended, and with it its history and its counters: what that one had open
        is over when somebody counts on."""
        self._ends, self.table = dead._ends, dead.table
        self._record("gateway_spawn", f"the spare, life {self.generation}, takes the place of gateway {dead.place}")

    def ended(self, exited: keeper_control.Exited) -> None:
        """It is dead and reaped: another one follows."""
        if self.life is not None:
            self.life.end()
        how = f"by signal {signal_name(exited.signal)}" if exited.signal else f"with status {exited.status}"
        self._site.keeper.say(keeper_control.Forget(exited.token))
        tail = self._site.logbook.end(str(self.place))
        why = f" because {self._why}" if self._why else ""
        if exited.signal or exited.status or self.follows:
            self._follow(f"{self._role} {self.place} ended {how}{why}", pid=exited.pid, tail=tail)
        else:
            self._record("gateway_stopped", "left, as it was told to", pid=exited.pid)
            self._is_gone()

    def unborn(self, text: str) -> None:
        """The keeper could not start it."""
        self._follow(f"{self._role} {self.place} could not be started: {text}")

    def say(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        """Tell it something, if it is there."""
        if self.life is not None and not self.life.dead and not self.is_spare:
            self.life.peer.say(encode(message), descriptors)

    def link(self, serving: Serving) -> None:
        """Tell a worker of it, then it of the worker: a fresh pair between the two."""
        if self.life is None or self.life.dead or self.is_spare:
            return
        faultpoint("brain.pair")
        ours, theirs = Seqpacket.pair()
        try:
            identity = f"g{self.place}.{self.generation}.{secrets.token_hex(6)}".encode()
            serving.life.peer.say(encode(worker_control.Attach(self.place, identity)), (theirs.fileno(),))
            faultpoint("brain.attached")
            link = gateway_control.Link(*serving.key, serving.address, identity, serving.spec, serving.metadata)
            self.say(link, (serving.life.pidfd, serving.life.page_fd, ours.fileno()))
        finally:
            ours.close()
            theirs.close()

    def look(self, now_s: float) -> None:
        """Kill it if its loop does not turn."""
        if self.life is None or self.life.dead:
            return
        progress = self.life.progress()
        stale_s = SPARE_STALE_S if self.is_spare else STALE_S
        if progress.activity is Activity.STARTING:
            if now_s - self._told_s > START_S:
                self.kill(f"it had not come up within {START_S:g} s")
        elif now_s - progress.beat_ns / 1e9 > stale_s:
            self.kill(f"its loop had not come round for {stale_s:g} s")

    def retire(self) -> None:
        """Another one serves in its stead: it may leave when its connections have."""
        self.follows = False
        self.say(gateway_control.Retire())
        faultpoint("brain.gateway_retired")

    @property
    def serves(self) -> bool:
        """It knows everything, and accepts connections."""
        return self.synced and self.life is not None and self.life.progress().activity is not Activity.STARTING

    @property
    def waits(self) -> bool:
        """It is a spare that has come up."""
        return self.is_spare and self.life is not None and self.life.progress().activity is Activity.STANDBY

    def close(self) -> None:
        """No next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def token(self) -> str:
        """Its process, between brain and keeper."""
        return gateway_token(self.place, self.generation)

    # Ears of its life.

    def heard(self, data: bytes, descriptors: list[int]) -> None:
        """A message of the gateway's."""
        close_all(descriptors)
        try:
            message = decode(data, gateway_control.FROM_GATEWAY)
        except WireError as error:
            self.kill(f"it sent what is no message of ours: {error}")
            return
        if isinstance(message, handshake.Hello):
            self.greeted = True
            if message.wire != handshake.WIRE_VERSION:
                self.kill(f"it speaks wire {message.wire}, this server {handshake.WIRE_VERSION}")
        elif self.greeted or not isinstance(message, _OF_A_DEAD_BRAIN):
            self._house.heard(self, message)

    def lost(self) -> None:
        """It closed its channel, or does not read it; a death says so too."""
        if self.life is not None:
            text = "it closed its control channel"
            self._timer = asyncio.get_running_loop().call_later(CLOSED_S, self.kill, text)

    def crashing(self, text: str) -> None:
        """Its crash pipe spoke; the exit follows."""

    def printed(self, data: bytes) -> None:
        """Its log."""
        self._site.logbook.feed(str(self.place), data)

    def kill(self, why: str) -> None:
        """End it, and say why."""
        if self.life is not None and not self.life.dead:
            self._why = why
            self._site.keeper.say(keeper_control.Signal(self.token, signal.SIGKILL, group=True))

    def _follow(self, text: str, **fields: Any) -> None:  # JSON, as the journal takes it
        self._is_gone()
        if self._site.stopping():
            return
        if not self.follows:
            self._record(f"{self._role}_exit", text, **fields)
            return
        now_s = time.monotonic()
        self._ends.append(backoff.End(now_s, now_s - self._told_s))
        del self._ends[: -backoff.HISTORY]
        delay_s = backoff.part_delay_s(self._ends, self._site.rng)
        self._record(f"{self._role}_exit", text, next_delay_s=round(delay_s, 3), **fields)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._house.follow, self)

    def _is_gone(self) -> None:
        self.close()
        self.life = None
        self.greeted = self.synced = False
        self._house.gone(self)

    @property
    def _role(self) -> str:
        return "spare" if self.is_spare else "gateway"

    def _record(self, name: str, text: str, **fields: Any) -> None:  # as above
        self._site.journal.record(name, text, generation=self.generation, gateway=self.place, **fields)


class GatewaySite:
    """What all gateway places act upon."""

    def __init__(
        self, settings: Settings, place: Place, keeper: KeeperSays, journal: Journal, logbook: Logbook
    ) -> None:
        self.settings = settings
        self.place = place
        self.keeper = keeper
        self.journal = journal
        self.logbook = logbook
        self.rng = random.Random()
        self.listeners: tuple[str, ...] = ()
        """Names of the keeper's listeners that a gateway serves on."""
        self.is_stopping = False

    def stopping(self) -> bool:
        """Whether no process is to follow another."""
        return self.is_stopping
