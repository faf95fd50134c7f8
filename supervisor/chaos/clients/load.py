"""Open-loop clients: requests go out when their time has come, whether or not earlier ones were answered.

Latency counts from the intended time, so that a server which stalls cannot hide the requests that it kept from being
sent. Each request carries a payload of its own, and each gets exactly one outcome in the history.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.chaos.clients.http_client import Door, Nonsense, Refused, Reset
from mmsup.supervisor.chaos.clients.payload import payload, whose
from mmsup.supervisor.chaos.clients.protocol import Driver, Harm
from mmsup.supervisor.chaos.observe.history import History, Invoke, Outcome
from mmsup.supervisor.chaos.plan.catalog import RIGHT

SIZES: Final = (8, 8, 8, 8, 64, 512, 2048, 16384)
"""Values of a payload, one of these each time: small ones in JSON, large ones through shared memory."""


@dataclass(slots=True)
class Rate:
    """How much is asked of a model."""

    per_s: float
    until_s: float
    """When the last request goes out, seconds of the run; may be put off."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a request is for that is not one of the flow."""

    harm: Harm | None = None
    strike: int = 0
    along: int = 0
    repeats: int = 0
    """As `Invoke` has them."""


PLAIN: Final = Errand()


class Clients:
    """Everybody who asks."""

    def __init__(self, door: Door, driver: Driver, history: History, models: Iterable[str], patience_s: float) -> None:
        self._door = door
        self._driver = driver
        self._history = history
        self._tenants = {name: index + 1 for index, name in enumerate(models)}
        self._patience_s = patience_s
        self._sent = 0
        self.on_answer: Callable[[str, Outcome], None] = lambda _model, _outcome: None
        """Told of every right answer."""

    async def flow(self, model: str, rate: Rate, rng: random.Random) -> None:
        """Requests to one model at random distances, until the end of the run; returns when all have their outcome."""
        intended = self._history.now() + rng.expovariate(rate.per_s)
        async with asyncio.TaskGroup() as group:
            while intended < rate.until_s:
                await asyncio.sleep(max(0.0, intended - self._history.now()))
                group.create_task(self.ask(model, rng.choice(SIZES), intended))
                intended += rng.expovariate(rate.per_s)

    async def ask(self, model: str, size: int, intended: float | None = None, errand: Errand = PLAIN) -> Outcome:
        """One request. Its outcome stands in the history, and comes back."""
        self._sent += 1
        number = self._sent
        made = payload(self._tenants[model], errand.repeats or number, size)
        call = self._driver.call(model, made, errand.harm)
        now = self._history.now()
        meant = now if intended is None else intended
        self._history.add(Invoke(now, number, model, meant, size, errand.strike, errand.along, errand.repeats))
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await self._door.ask(call, number)
        except (Reset, Refused, Nonsense, TimeoutError) as error:
            return self._add(Outcome(self._history.now(), number, _word(error), text=str(error)))
        answer = self._driver.answer(reply)
        now = self._history.now()
        if answer.data is None:
            outcome = Outcome(now, number, "error", reply.status, answer.code, text=answer.text)
        elif answer.data == made.data:
            outcome = Outcome(now, number, RIGHT, reply.status, pid=answer.pid, revision=answer.revision)
            self.on_answer(model, outcome)
        else:
            owner = whose(answer.data)
            outcome = Outcome(now, number, "crossed" if owner else "wrong", reply.status, whose=owner or 0)
        return self._add(outcome)

    def stray(self, number: int) -> None:
        """A connection said more than it was asked."""
        self._add(Outcome(self._history.now(), number, "stray"))

    def _add(self, outcome: Outcome) -> Outcome:
        self._history.add(outcome)
        return outcome


def _word(error: Exception) -> str:
    match error:
        case Refused():
            return "refused"
        case Reset():
            return "reset"
        case Nonsense():
            return "wrong"
        case _:
            return "timeout"
