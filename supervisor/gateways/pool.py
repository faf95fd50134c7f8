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

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.gateways.gateway_process import Gateway, GatewaySite
from mmsup.supervisor.gateways.standby import Spare
from mmsup.supervisor.instances.context import Judgement, LifeKey, Serving
from mmsup.supervisor.models.readiness import Readiness
from mmsup.supervisor.state.checkpoint import LEAVES, SERVES, SPARE, GatewayNote

LOOK_S: Final = 0.25
ANSWER_LIMIT: Final = MESSAGE_LIMIT - 4096


class Content(Protocol):
    """What there is to tell, and who wants to hear what they say."""

    def routes(self) -> list[gateway_control.Route]:
        """Every model as it is now."""
        ...

    def readiness(self) -> Readiness:
        """The server's."""
        ...

    def overdue(self, message: gateway_control.Overdue) -> None:
        """A gateway waits for a worker."""
        ...

    def bad_reply(self, message: gateway_control.BadReply) -> None:
        """A worker broke the protocol towards a gateway."""
        ...

    def link_ended(self, place: int, message: gateway_control.Ended) -> None:
        """A gateway's link to a worker is over."""
        ...

    def suspected(self, message: gateway_control.Suspected | gateway_control.Lived) -> None:
        """A gateway has found out something about a request that may have ended a worker."""
        ...

    def quarantine(self) -> list[gateway_control.Quarantine]:
        """What is known of such requests."""
        ...

    def asked(self, message: gateway_control.Ask, answer: Callable[[gateway_control.Answer], None]) -> None:
        """A gateway's client wants something."""
        ...

    def gateways_changed(self) -> None:
        """One came up, or went."""
        ...

    def is_announced(self) -> bool:
        """Whether the server has come up."""
        ...


class Gateways:
    """The house of all gateway places."""

    def __init__(self, site: GatewaySite, content: Content) -> None:
        self.places = [Gateway(place, place, self, site) for place in range(site.settings.gateways)]
        self.others: list[Gateway] = []
        """One that is coming up beside a place, and those that leave."""
        self.spare = Spare(site.settings)
        self._site = site
        self._content = content
        self._linked: dict[LifeKey, Serving] = {}
        self._pings = 0
        self._barriers: dict[int, _Barrier] = {}
        self._introductions: dict[int, Gateway] = {}
        self._undrained: set[int] = set()
        self._drained = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._met = 0

    def start(self) -> None:
        """Look after all of them from now on; start those that are not there."""
        for gateway in self.places:
            gateway.begin()
        if self.spare.gateway is not None:
            self.spare.gateway.begin()
        for gateway in list(self.others):
            if gateway.life is None:
                self.others.remove(gateway)
            else:
                gateway.retire()  # who was to be a successor has no brain any more that knows whose
        self._look()

    def close(self) -> None:
        """No next ones; those there are live on without us."""
        for gateway in self.everybody():
            gateway.close()
            if gateway.life is not None:
                gateway.life.close()
        if self._timer is not None:
            self._timer.cancel()
        for barrier in list(self._barriers.values()):
            barrier.timer.cancel()

    def are_up(self) -> bool:
        """Whether all have their routes."""
        return all(gateway.synced for gateway in self.places)

    def everybody(self) -> list[Gateway]:
        """Those in their places, coming, leaving, and the spare."""
        return [*self.places, *self.others, *([self.spare.gateway] if self.spare.gateway else [])]

    def at(self, number: int) -> Gateway | None:
        """The gateway of this number."""
        return next((each for each in self.everybody() if each.place == number), None)

    def heard_from(self) -> frozenset[int]:
        """Places of those that live and have answered."""
        return frozenset(each.place for each in self.everybody() if each.greeted and each.life and not each.life.dead)

    def notes(self) -> tuple[GatewayNote, ...]:
        """What the next brain needs to know of them."""
        return tuple(
            GatewayNote(each.place, each.table, each.generation, each.spawned_s, self._role(each))
            for each in self.everybody()
        )

    def _role(self, gateway: Gateway) -> str:
        if gateway is self.spare.gateway:
            return SPARE
        return SERVES if gateway.follows else LEAVES

    def restore(self, notes: Sequence[GatewayNote]) -> None:
        """As an earlier brain left them, without processes."""
        made = {role: [self._restored(each) for each in notes if each.role == role] for role in (SERVES, LEAVES, SPARE)}
        self.places[: len(made[SERVES])] = made[SERVES][: len(self.places)]
        self.others = made[LEAVES]
        self.spare.gateway = next(iter(made[SPARE]), None)

    def _restored(self, note: GatewayNote) -> Gateway:
        gateway = Gateway(note.place, note.table, self, self._site)
        gateway.generation, gateway.spawned_s, gateway.follows = note.generation, note.spawned_s, note.role != LEAVES
        gateway.is_spare = note.role == SPARE
        return gateway

    # Upgrades.

    def successor(self) -> Gateway | None:
        """Another one, started beside those there are; None if there is no number for it as long as some leave."""
        made = self._another()
        if made is None:
            return None
        made.follows = False
        made.spawn(self._next_generation())
        self.others.append(made)
        faultpoint("brain.gateway_beside")
        return made

    def free_number(self) -> int | None:
        """One that no living gateway has."""
        return self._free({each.place for each in self.everybody()})

    def _free(self, taken: set[int]) -> int | None:
        return next((number for number in range(self._site.settings.gateway_numbers) if number not in taken), None)

    def _another(self) -> Gateway | None:
        number, table = self.free_number(), self._free({each.table for each in self.everybody()})
        return None if number is None or table is None else Gateway(number, table, self, self._site)

    def _next_generation(self) -> int:
        return 1 + max(self._met, *(each.generation for each in self.everybody()))

    def meet(self, generation: int) -> None:
        """A process of this generation is there, though perhaps nobody knows what for: no other gets its name."""
        self._met = max(self._met, generation)

    def replace(self, old: Gateway, new: Gateway) -> None:
        """The new one serves and has the place; the old one may be retired, if it lives."""
        self.others.remove(new)
        self.places[self.places.index(old)] = new
        new.follows, old.follows = True, False
        if old.life is not None:
            self.others.append(old)
        else:
            old.close()

    # Said to all.

    def link(self, serving: Serving) -> None:
        """Route to this life."""
        self._linked[serving.key] = serving
        for gateway in self.everybody():
            gateway.link(serving)
        faultpoint("brain.linked")

    def unlink(self, key: LifeKey) -> None:
        """Route nothing more to it."""
        if self._linked.pop(key, None) is not None:
            self.say(gateway_control.Unlink(*key))
            faultpoint("brain.withdrawn")

    def condemn(self, key: LifeKey, judgement: Judgement) -> None:
        """It is about to be killed."""
        self._linked.pop(key, None)
        self.say(gateway_control.Condemned(*key, judgement.code, judgement.text))
        faultpoint("brain.condemned")

    def buried(self, key: LifeKey, judgement: Judgement) -> None:
        """It is dead, and this is why."""
        self._linked.pop(key, None)
        self.say(gateway_control.Verdict(*key, judgement.code, judgement.text, judgement.retryable))

    def route(self, route: gateway_control.Route) -> None:
        """A model as it is now."""
        self.say(route)
        faultpoint("brain.routed")

    def unroute(self, name: str) -> None:
        """A model that is in no repository any more."""
        self.say(gateway_control.Unroute(name))

    def say(self, message: object) -> None:
        """Something that all of them shall hear."""
        for gateway in self.everybody():
            gateway.say(message)

    def sync(self, readiness: Readiness) -> None:
        """The server's readiness; everything else has been said."""
        self.say(gateway_control.Synced(readiness.ready, readiness.reason))

    def barrier(self, limit_s: float, then: Callable[[], None]) -> None:
        """Call `then` once, when all gateways have done what was said so far, or after the limit."""
        waiting = {each.place for each in self.everybody() if each.greeted}
        if not waiting:
            asyncio.get_running_loop().call_soon(then)
            return
        self._pings += 1
        number = self._pings
        timer = asyncio.get_running_loop().call_later(limit_s, self._pass, number)
        self._barriers[number] = _Barrier(waiting, then, timer)
        self.say(gateway_control.Ping(number))

    async def reached(self, limit_s: float) -> None:
        """As `barrier`, for a coroutine."""
        done = asyncio.get_running_loop().create_future()
        self.barrier(limit_s, lambda: None if done.done() else done.set_result(None))
        await done

    async def drain(self, limit_s: float) -> bool:
        """Take no new inference, finish what is accepted; whether all have within the limit."""
        # Also of one that an earlier brain knew and that has not answered us yet: what it has accepted is as real.
        self._undrained = {each.place for each in self.everybody() if each.life is not None and not each.is_spare}
        self._drained.clear()
        if not self._undrained:
            return True
        self.say(gateway_control.Drain())
        try:
            async with asyncio.timeout(limit_s):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    # House of each.

    def introduce(self, gateway: Gateway) -> None:
        """Tell a gateway that was just configured everything there is."""
        for route in self._content.routes():
            gateway.say(route)
        for each in self._content.quarantine():
            gateway.say(each)
        for serving in self._linked.values():
            gateway.link(serving)
        readiness = self._content.readiness()
        gateway.say(gateway_control.Synced(readiness.ready, readiness.reason))
        self._pings += 1
        self._introductions[self._pings] = gateway
        gateway.say(gateway_control.Ping(self._pings))

    def heard(self, gateway: Gateway, message: Any) -> None:  # one of FROM_GATEWAY but Hello
        """What a gateway says of workers, of its clients, of what it has done."""
        match message:
            case gateway_control.Pong(number):
                self._pong(gateway, number)
            case gateway_control.Ask():
                self._content.asked(message, lambda answer: self._answer(gateway, gateway.generation, answer))
            case gateway_control.Overdue():
                self._content.overdue(message)
            case gateway_control.BadReply():
                self._content.bad_reply(message)
            case gateway_control.Ended():
                self._content.link_ended(gateway.place, message)
            case gateway_control.Suspected() | gateway_control.Lived():
                self._content.suspected(message)
            case _:
                self._has_drained(gateway)

    def gone(self, gateway: Gateway) -> None:
        """It is dead: nothing is to be awaited from it."""
        self._introductions = {key: each for key, each in self._introductions.items() if each is not gateway}
        for number in list(self._barriers):
            self._arrived(number, gateway.place)
        self._has_drained(gateway)
        if gateway in self.others:
            self.others.remove(gateway)
        self._content.gateways_changed()

    def follow(self, gateway: Gateway) -> None:
        """A place is to have a process again: the spare's, if there is one that lives."""
        spare = self.spare.take() if gateway in self.places else None
        if spare is None:
            gateway.spawn()
            return
        self.places[self.places.index(gateway)] = spare
        spare.inherit(gateway)
        self._content.gateways_changed()  # the next brain knows it as no spare before it hears the first word
        spare.configure()

    def _pong(self, gateway: Gateway, number: int) -> None:
        if self._introductions.get(number) is gateway:
            del self._introductions[number]
            gateway.synced = True
            self._content.gateways_changed()
        self._arrived(number, gateway.place)

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

    def _has_drained(self, gateway: Gateway) -> None:
        self._undrained.discard(gateway.place)
        if not self._undrained:
            self._drained.set()

    def _answer(self, gateway: Gateway, generation: int, answer: gateway_control.Answer) -> None:
        if gateway.generation == generation:
            gateway.say(answer)

    def _look(self) -> None:
        for gateway in self.everybody():
            gateway.look(time.monotonic())
        if self.others:
            self._content.gateways_changed()  # whether one that comes up serves, it says by its page alone
        self._keep_spare(time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _keep_spare(self, now_s: float) -> None:
        """Start one if there should be one."""
        all_serve = self._content.is_announced() and all(each.serves for each in self.places)
        is_due = self.spare.is_due(now_s, is_calm=all_serve and not self._site.stopping())
        if is_due and (made := self._another()) is not None:
            self.spare.enlist(made, self._next_generation())
            self._content.gateways_changed()


class _Barrier:
    def __init__(self, waiting: set[int], then: Callable[[], None], timer: asyncio.TimerHandle) -> None:
        self.waiting = waiting
        self.then = then
        self.timer = timer
