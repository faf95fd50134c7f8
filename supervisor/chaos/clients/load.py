"""Open-loop load: each request is sent at its planned time, whether or not earlier ones have been answered.

Latency counts from the planned time, so that a server which stalls cannot hide the requests that it delayed. Each
request carries a payload of its own, and gets exactly one outcome in the history.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpReply, RequestFailed
from mmsup.supervisor.chaos.clients.payload import make_payload, request_number_of
from mmsup.supervisor.chaos.clients.protocol import FaultCommand, ProtocolAdapter
from mmsup.supervisor.chaos.clients.sequences import ClientSequence, ClientSequences
from mmsup.supervisor.chaos.observe.history import History, Invoke, RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import RIGHT

PAYLOAD_SIZES: Final = (8, 8, 8, 8, 64, 512, 2048, 16384)
"""Numbers of values, chosen at random: small payloads go as JSON, large ones through shared memory."""


@dataclass(slots=True)
class RequestRate:
    """Requests per second to a model, until a time of the run that may still be moved."""

    per_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class RequestPurpose:
    """Why a request is sent that is part of a fault; numbers as in `Invoke`."""

    command: FaultCommand | None = None
    fault_number: int = 0
    beside_fault: int = 0
    repeats: int = 0


NO_PURPOSE: Final = RequestPurpose()
"""Ordinary load."""


class SendsCalls(Protocol):
    """HttpClient, or a client of another transport that takes the same calls."""

    async def send(self, call: HttpCall, number: int = 0) -> HttpReply:
        """The reply; RequestFailed if there is none."""
        ...


class LoadGenerator:
    """Sends requests to the models of one server and records them."""

    def __init__(
        self, client: SendsCalls, adapter: ProtocolAdapter, history: History, models: Iterable[str], timeout_s: float
    ) -> None:
        self._client = client
        self._adapter = adapter
        self._history = history
        self._tenants = {name: index + 1 for index, name in enumerate(models)}
        self._timeout_s = timeout_s
        self.numbers: Iterator[int] = itertools.count(1)
        """Of the requests; generators of one history share them."""
        self.via = ""
        """As in `Invoke`."""
        self.sequences: dict[str, ClientSequences] = {}
        """Of the models whose requests belong to one."""
        self.on_answer: Callable[[str, RequestOutcome], None] = lambda _model, _outcome: None
        """Called with model and outcome of every right answer."""

    async def run_model(self, model: str, rate: RequestRate, rng: random.Random) -> None:
        """Send requests to one model as a Poisson process until the rate ends; returns when all have an outcome."""
        intended = self._history.now() + rng.expovariate(rate.per_s)
        async with asyncio.TaskGroup() as group:
            while intended < rate.until_s:
                await asyncio.sleep(max(0.0, intended - self._history.now()))
                group.create_task(self.send(model, rng.choice(PAYLOAD_SIZES), intended))
                intended += rng.expovariate(rate.per_s)

    async def send(
        self, model: str, size: int, intended: float | None = None, purpose: RequestPurpose = NO_PURPOSE
    ) -> RequestOutcome:
        """Send one request; records and returns its outcome. `size` is in values."""
        sequences = self.sequences.get(model)
        if sequences is None:
            return await self._send(model, size, intended, purpose, None)
        sequence = sequences.take()
        outcome = await self._send(model, size, intended, purpose, sequence)
        sequences.give_back(sequence, outcome)
        return outcome

    async def _send(
        self, model: str, size: int, intended: float | None, purpose: RequestPurpose, sequence: ClientSequence | None
    ) -> RequestOutcome:
        number = next(self.numbers)
        payload = make_payload(self._tenants[model], purpose.repeats or number, size)
        parameters = sequence.parameters() if sequence is not None else None
        call = self._adapter.build_request(model, payload, purpose.command, parameters)
        now = self._history.now()
        numbers = purpose.fault_number, purpose.beside_fault, purpose.repeats
        self._history.add(Invoke(now, number, model, now if intended is None else intended, size, *numbers, self.via))
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._client.send(call, number)
        except (RequestFailed, TimeoutError) as error:
            kind = error.kind if isinstance(error, RequestFailed) else "timeout"
            return self._add(RequestOutcome(self._history.now(), number, kind, text=str(error)))
        answer = self._adapter.parse_reply(reply)
        now = self._history.now()
        if answer.data is None:
            outcome = RequestOutcome(now, number, "error", reply.status, answer.code, text=answer.text)
        elif answer.data == payload.data and sequence is not None and answer.runs != sequence.answered + 1:
            text = f"request {sequence.answered + 1} of sequence {sequence.id} was run as number {answer.runs}"
            outcome = RequestOutcome(now, number, "wrong", reply.status, text=text)
        elif answer.data == payload.data:
            outcome = RequestOutcome(now, number, RIGHT, reply.status, pid=answer.pid, revision=answer.revision)
            self.on_answer(model, outcome)
        else:
            owner = request_number_of(answer.data)
            outcome = RequestOutcome(now, number, "crossed" if owner else "wrong", reply.status, whose=owner or 0)
        return self._add(outcome)

    def _add(self, outcome: RequestOutcome) -> RequestOutcome:
        self._history.add(outcome)
        return outcome
