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

from mmsup.supervisor.chaos.clients.http_client import ConnectionRefused, ConnectionReset, HttpClient, MalformedReply
from mmsup.supervisor.chaos.clients.payload import make_payload, request_number_of
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ProtocolAdapter
from mmsup.supervisor.chaos.observe.history import History, Invoke, RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import RIGHT

PAYLOAD_SIZES: Final = (8, 8, 8, 8, 64, 512, 2048, 16384)
"""Values of a payload, one of these each time: small ones in JSON, large ones through shared memory."""


@dataclass(slots=True)
class RequestRate:
    """How much is asked of a model."""

    per_s: float
    until_s: float
    """When the last request goes out, seconds of the run; may be put off."""


@dataclass(frozen=True, slots=True)
class RequestPurpose:
    """What a request is for that is not one of the flow."""

    command: FaultCommand | None = None
    fault_number: int = 0
    beside_fault: int = 0
    repeats: int = 0
    """As `Invoke` has them."""


NO_PURPOSE: Final = RequestPurpose()


class LoadGenerator:
    """Everybody who asks."""

    def __init__(
        self, client: HttpClient, adapter: ProtocolAdapter, history: History, models: Iterable[str], timeout_s: float
    ) -> None:
        self._client = client
        self._adapter = adapter
        self._history = history
        self._tenants = {name: index + 1 for index, name in enumerate(models)}
        self._timeout_s = timeout_s
        self._sent = 0
        self.on_answer: Callable[[str, RequestOutcome], None] = lambda _model, _outcome: None
        """Told of every right answer."""

    async def run_model(self, model: str, rate: RequestRate, rng: random.Random) -> None:
        """Requests to one model at random distances, until the end of the run; returns when all have their outcome."""
        intended = self._history.now() + rng.expovariate(rate.per_s)
        async with asyncio.TaskGroup() as group:
            while intended < rate.until_s:
                await asyncio.sleep(max(0.0, intended - self._history.now()))
                group.create_task(self.send(model, rng.choice(PAYLOAD_SIZES), intended))
                intended += rng.expovariate(rate.per_s)

    async def send(
        self, model: str, size: int, intended: float | None = None, purpose: RequestPurpose = NO_PURPOSE
    ) -> RequestOutcome:
        """One request. Its outcome stands in the history, and comes back."""
        self._sent += 1
        number = self._sent
        made = make_payload(self._tenants[model], purpose.repeats or number, size)
        call = self._adapter.build_request(model, made, purpose.command)
        now = self._history.now()
        meant = now if intended is None else intended
        self._history.add(
            Invoke(now, number, model, meant, size, purpose.fault_number, purpose.beside_fault, purpose.repeats)
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._client.send(call, number)
        except (ConnectionReset, ConnectionRefused, MalformedReply, TimeoutError) as error:
            return self._add(RequestOutcome(self._history.now(), number, _outcome_kind(error), text=str(error)))
        answer = self._adapter.parse_reply(reply)
        now = self._history.now()
        if answer.data is None:
            outcome = RequestOutcome(now, number, "error", reply.status, answer.code, text=answer.text)
        elif answer.data == made.data:
            outcome = RequestOutcome(now, number, RIGHT, reply.status, pid=answer.pid, revision=answer.revision)
            self.on_answer(model, outcome)
        else:
            owner = request_number_of(answer.data)
            outcome = RequestOutcome(now, number, "crossed" if owner else "wrong", reply.status, whose=owner or 0)
        return self._add(outcome)

    def on_unexpected_reply(self, number: int) -> None:
        """A connection said more than it was asked."""
        self._add(RequestOutcome(self._history.now(), number, "stray"))

    def _add(self, outcome: RequestOutcome) -> RequestOutcome:
        self._history.add(outcome)
        return outcome


def _outcome_kind(error: Exception) -> str:
    match error:
        case ConnectionRefused():
            return "refused"
        case ConnectionReset():
            return "reset"
        case MalformedReply():
            return "wrong"
        case _:
            return "timeout"
