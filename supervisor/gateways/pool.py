"""All gateways as one: what is said to each of them, and when they have done it.

Owns: which lives they are linked to, so that a gateway that comes later hears of all. A barrier asks every gateway
that is there for a Pong, and waits for none of them longer than its limit.

There are as many *places* as are configured. In an upgrade another gateway comes up beside one of them, takes its place
once it serves, and the old one leaves when its connections have. Whoever leaves is told everything until the end: what
comes on its last connections is served like all else. Each has a number that no other living one has, and a tally.

Beside them there is a *spare*, where settings want one: the next place that needs a process gets this one, and another
spare is started when all places have served for a while (spare.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import (
    AddPoisonEntries,
    BadReply,
    CommandReply,
    CommandRequest,
    Condemned,
    DrainGateway,
    LinkClosed,
    Ping,
    PoisonSuspected,
    Pong,
    RequestOverdue,
    Route,
    SuspectCleared,
    Synced,
    UnlinkWorker,
    Unroute,
    Verdict,
)
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.gateways.gateway_process import GatewayContext, GatewayProcess
from mmsup.supervisor.gateways.standby import Standby
from mmsup.supervisor.instances.context import WorkerEndpoint, WorkerFailure, WorkerId
from mmsup.supervisor.models.readiness import ServerReadiness
from mmsup.supervisor.state.checkpoint import LEAVING, SERVING, STANDBY, GatewayRecord

CHECK_INTERVAL_S: Final = 0.25
ANSWER_LIMIT: Final = MESSAGE_LIMIT - 4096


class GatewayEvents(Protocol):
    """What there is to tell, and who wants to hear what they say."""

    def routes(self) -> list[Route]:
        """Every model as it is now."""
        ...

    def readiness(self) -> ServerReadiness:
        """The server's."""
        ...

    def overdue(self, message: RequestOverdue) -> None:
        """A gateway waits for a worker."""
        ...

    def bad_reply(self, message: BadReply) -> None:
        """A worker broke the protocol towards a gateway."""
        ...

    def on_link_ended(self, place: int, message: LinkClosed) -> None:
        """A gateway's link to a worker is over."""
        ...

    def suspected(self, message: PoisonSuspected | SuspectCleared) -> None:
        """A gateway has found out something about a request that may have ended a worker."""
        ...

    def quarantine(self) -> list[AddPoisonEntries]:
        """What is known of such requests."""
        ...

    def asked(self, message: CommandRequest, answer: Callable[[CommandReply], None]) -> None:
        """A gateway's client wants something."""
        ...

    def on_gateways_changed(self) -> None:
        """One came up, or went."""
        ...

    def is_announced(self) -> bool:
        """Whether the server has come up."""
        ...


class GatewayPool:
    """The house of all gateway places."""

    def __init__(self, site: GatewayContext, content: GatewayEvents) -> None:
        self.seats = [GatewayProcess(place, place, self, site) for place in range(site.settings.gateways)]
        self.unseated: list[GatewayProcess] = []
        """One that is coming up beside a place, and those that leave."""
        self.standby = Standby(site.settings)
        self._site = site
        self._content = content
        self._endpoints: dict[WorkerId, WorkerEndpoint] = {}
        self._pings = 0
        self._barriers: dict[int, _Barrier] = {}
        self._introductions: dict[int, GatewayProcess] = {}
        self._undrained: set[int] = set()
        self._drained = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._met = 0

    def start(self) -> None:
        """Look after all of them from now on; start those that are not there."""
        for gateway in self.seats:
            gateway.start()
        if self.standby.gateway is not None:
            self.standby.gateway.start()
        for gateway in list(self.unseated):
            if gateway.process is None:
                self.unseated.remove(gateway)
            else:
                gateway.retire()  # who was to be a successor has no brain any more that knows whose
        self._check()

    def close(self) -> None:
        """No next ones; those there are live on without us."""
        for gateway in self.processes():
            gateway.close()
            if gateway.process is not None:
                gateway.process.close()
        if self._timer is not None:
            self._timer.cancel()
        for barrier in list(self._barriers.values()):
            barrier.timer.cancel()

    def are_up(self) -> bool:
        """Whether all have their routes."""
        return all(gateway.synced for gateway in self.seats)

    def processes(self) -> list[GatewayProcess]:
        """Those in their places, coming, leaving, and the spare."""
        return [*self.seats, *self.unseated, *([self.standby.gateway] if self.standby.gateway else [])]

    def find(self, number: int) -> GatewayProcess | None:
        """The gateway of this number."""
        return next((each for each in self.processes() if each.number == number), None)

    def connected_numbers(self) -> frozenset[int]:
        """Places of those that live and have answered."""
        return frozenset(
            each.number for each in self.processes() if each.has_answered and each.process and not each.process.is_dead
        )

    def records(self) -> tuple[GatewayRecord, ...]:
        """What the next brain needs to know of them."""
        return tuple(
            GatewayRecord(each.number, each.counter_table, each.generation, each.spawned_s, self._role(each))
            for each in self.processes()
        )

    def _role(self, gateway: GatewayProcess) -> str:
        if gateway is self.standby.gateway:
            return STANDBY
        return SERVING if gateway.respawns else LEAVING

    def restore(self, notes: Sequence[GatewayRecord]) -> None:
        """As an earlier brain left them, without processes."""
        made = {
            role: [self._restored(each) for each in notes if each.role == role] for role in (SERVING, LEAVING, STANDBY)
        }
        self.seats[: len(made[SERVING])] = made[SERVING][: len(self.seats)]
        self.unseated = made[LEAVING]
        self.standby.gateway = next(iter(made[STANDBY]), None)

    def _restored(self, note: GatewayRecord) -> GatewayProcess:
        gateway = GatewayProcess(note.number, note.counter_table, self, self._site)
        gateway.generation, gateway.spawned_s, gateway.respawns = note.generation, note.spawned_s, note.role != LEAVING
        gateway.is_standby = note.role == STANDBY
        return gateway

    # Upgrades.

    def start_successor(self) -> GatewayProcess | None:
        """Another one, started beside those there are; None if there is no number for it as long as some leave."""
        made = self._another()
        if made is None:
            return None
        made.respawns = False
        made.spawn(self._next_generation())
        self.unseated.append(made)
        failpoint("brain.gateway_beside")
        return made

    def free_number(self) -> int | None:
        """One that no living gateway has."""
        return self._free({each.number for each in self.processes()})

    def _free(self, taken: set[int]) -> int | None:
        return next((number for number in range(self._site.settings.gateway_seats) if number not in taken), None)

    def _another(self) -> GatewayProcess | None:
        number, table = self.free_number(), self._free({each.counter_table for each in self.processes()})
        return None if number is None or table is None else GatewayProcess(number, table, self, self._site)

    def _next_generation(self) -> int:
        return 1 + max(self._met, *(each.generation for each in self.processes()))

    def reserve_generation(self, generation: int) -> None:
        """A process of this generation is there, though perhaps nobody knows what for: no other gets its name."""
        self._met = max(self._met, generation)

    def replace(self, old: GatewayProcess, new: GatewayProcess) -> None:
        """The new one serves and has the place; the old one may be retired, if it lives."""
        self.unseated.remove(new)
        self.seats[self.seats.index(old)] = new
        new.respawns, old.respawns = True, False
        if old.process is not None:
            self.unseated.append(old)
        else:
            old.close()

    # Said to all.

    def link(self, serving: WorkerEndpoint) -> None:
        """Route to this life."""
        self._endpoints[serving.worker_id] = serving
        for gateway in self.processes():
            gateway.link(serving)
        failpoint("brain.linked")

    def unlink(self, key: WorkerId) -> None:
        """Route nothing more to it."""
        if self._endpoints.pop(key, None) is not None:
            self.broadcast(UnlinkWorker(*key))
            failpoint("brain.withdrawn")

    def condemn(self, key: WorkerId, judgement: WorkerFailure) -> None:
        """It is about to be killed."""
        self._endpoints.pop(key, None)
        self.broadcast(Condemned(*key, judgement.code, judgement.text))
        failpoint("brain.condemned")

    def verdict(self, key: WorkerId, judgement: WorkerFailure) -> None:
        """It is dead, and this is why."""
        self._endpoints.pop(key, None)
        self.broadcast(Verdict(*key, judgement.code, judgement.text, judgement.retryable))

    def route(self, route: Route) -> None:
        """A model as it is now."""
        self.broadcast(route)
        failpoint("brain.routed")

    def unroute(self, name: str) -> None:
        """A model that is in no repository any more."""
        self.broadcast(Unroute(name))

    def broadcast(self, message: object) -> None:
        """Something that all of them shall hear."""
        for gateway in self.processes():
            gateway.send(message)

    def send_readiness(self, readiness: ServerReadiness) -> None:
        """The server's readiness; everything else has been said."""
        self.broadcast(Synced(readiness.ready, readiness.reason))

    def barrier(self, limit_s: float, on_done: Callable[[], None]) -> None:
        """Call `then` once, when all gateways have done what was said so far, or after the limit."""
        waiting = {each.number for each in self.processes() if each.has_answered}
        if not waiting:
            asyncio.get_running_loop().call_soon(on_done)
            return
        self._pings += 1
        number = self._pings
        timer = asyncio.get_running_loop().call_later(limit_s, self._pass, number)
        self._barriers[number] = _Barrier(waiting, on_done, timer)
        self.broadcast(Ping(number))

    async def wait_until_applied(self, limit_s: float) -> None:
        """As `barrier`, for a coroutine."""
        done = asyncio.get_running_loop().create_future()
        self.barrier(limit_s, lambda: None if done.done() else done.set_result(None))
        await done

    async def drain(self, limit_s: float) -> bool:
        """Take no new inference, finish what is accepted; whether all have within the limit."""
        # Also of one that an earlier brain knew and that has not answered us yet: what it has accepted is as real.
        self._undrained = {each.number for each in self.processes() if each.process is not None and not each.is_standby}
        self._drained.clear()
        if not self._undrained:
            return True
        self.broadcast(DrainGateway())
        try:
            async with asyncio.timeout(limit_s):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    # House of each.

    def send_state(self, gateway: GatewayProcess) -> None:
        """Tell a gateway that was just configured everything there is."""
        for route in self._content.routes():
            gateway.send(route)
        for each in self._content.quarantine():
            gateway.send(each)
        for serving in self._endpoints.values():
            gateway.link(serving)
        readiness = self._content.readiness()
        gateway.send(Synced(readiness.ready, readiness.reason))
        self._pings += 1
        self._introductions[self._pings] = gateway
        gateway.send(Ping(self._pings))

    def on_message(self, gateway: GatewayProcess, message: Any) -> None:  # one of FROM_GATEWAY but Hello
        """What a gateway says of workers, of its clients, of what it has done."""
        match message:
            case Pong(number):
                self._pong(gateway, number)
            case CommandRequest():
                self._content.asked(message, lambda answer: self._answer(gateway, gateway.generation, answer))
            case RequestOverdue():
                self._content.overdue(message)
            case BadReply():
                self._content.bad_reply(message)
            case LinkClosed():
                self._content.on_link_ended(gateway.number, message)
            case PoisonSuspected() | SuspectCleared():
                self._content.suspected(message)
            case _:
                self._has_drained(gateway)

    def on_exited(self, gateway: GatewayProcess) -> None:
        """It is dead: nothing is to be awaited from it."""
        self._introductions = {key: each for key, each in self._introductions.items() if each is not gateway}
        for number in list(self._barriers):
            self._arrived(number, gateway.number)
        self._has_drained(gateway)
        if gateway in self.unseated:
            self.unseated.remove(gateway)
        self._content.on_gateways_changed()

    def respawn(self, gateway: GatewayProcess) -> None:
        """A place is to have a process again: the spare's, if there is one that lives."""
        spare = self.standby.claim() if gateway in self.seats else None
        if spare is None:
            gateway.spawn()
            return
        self.seats[self.seats.index(gateway)] = spare
        spare.take_seat_of(gateway)
        self._content.on_gateways_changed()  # the next brain knows it as no spare before it hears the first word
        spare.configure()

    def _pong(self, gateway: GatewayProcess, number: int) -> None:
        if self._introductions.get(number) is gateway:
            del self._introductions[number]
            gateway.synced = True
            self._content.on_gateways_changed()
        self._arrived(number, gateway.number)

    def _arrived(self, number: int, place: int) -> None:
        barrier = self._barriers.get(number)
        if barrier is not None:
            barrier.waiting.discard(place)
            if not barrier.waiting:
                self._pass(number)

    def _pass(self, number: int) -> None:
        barrier = self._barriers.pop(number)
        barrier.timer.cancel()
        barrier.then()

    def _has_drained(self, gateway: GatewayProcess) -> None:
        self._undrained.discard(gateway.number)
        if not self._undrained:
            self._drained.set()

    def _answer(self, gateway: GatewayProcess, generation: int, answer: CommandReply) -> None:
        if gateway.generation == generation:
            gateway.send(answer)

    def _check(self) -> None:
        for gateway in self.processes():
            gateway.check(time.monotonic())
        if self.unseated:
            self._content.on_gateways_changed()  # whether one that comes up serves, it says by its page alone
        self._keep_spare(time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)

    def _keep_spare(self, now_s: float) -> None:
        """Start one if there should be one."""
        all_serve = self._content.is_announced() and all(each.is_serving for each in self.seats)
        is_due = self.standby.is_due(now_s, is_steady=all_serve and not self._site.stopping())
        if is_due and (made := self._another()) is not None:
            self.standby.start(made, self._next_generation())
            self._content.on_gateways_changed()


class _Barrier:
    def __init__(self, waiting: set[int], then: Callable[[], None], timer: asyncio.TimerHandle) -> None:
        self.waiting = waiting
        self.then = then
        self.timer = timer
