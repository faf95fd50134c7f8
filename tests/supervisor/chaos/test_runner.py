"""A run that waits for its victims goes through every fault of its plan, one at a time; another one passes over."""

from __future__ import annotations

import asyncio
import json

import pytest

from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.clients.protocol import V2Adapter
from mmsup.supervisor.chaos.observe.history import FaultInjected, History, Invoke, RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import ModelRole, select_faults
from mmsup.supervisor.chaos.runner import ChaosOptions
from mmsup.supervisor.chaos.runner_runs import run_against
from mmsup.supervisor.chaos.server.target import Target
from small_server import listening

pytestmark = pytest.mark.slow
TENDED_S = 2.0
"""Longer than a victim's rest in the plan."""


class Slow:
    """Somebody who needs a while, and writes down how many faults there were at a time."""

    def __init__(self) -> None:
        self.at_once = self.most = self.answers = 0

    def on_answer(self, model: str, outcome: RequestOutcome) -> None:
        self.answers += 1

    async def repair(self) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(TENDED_S)
        self.at_once -= 1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request with its own values, until there is none."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        (length,) = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Le")]
        (x, *_) = json.loads(await reader.readexactly(length))["inputs"]
        body = json.dumps({"outputs": [{"name": "y", "data": x["data"]}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


def ran(*, waits: bool) -> tuple[Slow, History]:
    """A plan of faults that come faster than their victim rests."""
    history, tender = History(), Slow()
    course = ChaosOptions(
        1,
        3.6,
        (0.6, 0.6),
        20.0,
        select_faults("leave"),
        {},
        fault_free_s=0.2,
        cooldown_s=0.4,
        request_timeout_s=5.0,
        wait_for_recovery=waits,
    )

    async def run() -> None:
        async with listening(echo) as port:
            models = {"a": ModelRole.HEALTHY, "b": ModelRole.CRASHY}
            target = Target(HttpClient("127.0.0.1", port, lambda _: None), models, operator=tender)
            await run_against(target, [], course, V2Adapter(binary=False), history, lambda _: None)

    asyncio.run(run())
    return tender, history


def injected(history: History) -> list[FaultInjected]:
    return [each for each in history.records if isinstance(each, FaultInjected)]


def test_a_run_that_waits_does_every_fault_one_at_a_time_and_its_clients_go_on_until_the_last() -> None:
    tender, history = ran(waits=True)
    faults = injected(history)
    assert len(faults) == 3
    assert all(each.done for each in faults)
    assert tender.most == 1
    assert tender.answers > 0
    assert max(each.t for each in history.records if isinstance(each, Invoke)) > faults[-1].t + TENDED_S


def test_a_run_that_does_not_wait_passes_over_a_victim_that_is_not_back() -> None:
    _, history = ran(waits=False)
    faults = injected(history)
    assert len(faults) == 3
    assert not all(each.done for each in faults)
