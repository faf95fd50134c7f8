"""What a client of one model sees while another model of the same server fails, and when that one is back.

Requests to the healthy model leave by a schedule, whether or not earlier ones were answered: a server that stands still
fails all that were due meanwhile. Each has a connection of its own and one of several inputs, whose answer is known.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from wire import Request

PATIENCE_S = 5.0
"""A request that has no answer by then has failed."""
PROBE_S = 1.0
PAUSE_S = 0.02
"""Between two questions whether the failed model is back."""
SETTLED_S = 0.5
"""A harm that shows nothing for so long is at work: a hang."""

Right = Callable[[int, bytes], bool]
"""Whether a body answers the input at this place."""


@dataclass
class Seen:
    """One fault, as clients saw it."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)
    before_s: list[float] = field(default_factory=list)
    """Latencies of the healthy model before the fault, from the moment each request was due."""
    during_s: list[float] = field(default_factory=list)
    told_s: float | None = None
    """From the fatal request to its outcome; None if it had none in the time."""
    told: str = ""
    back_s: float | None = None
    """From the fatal request to the first right answer of the same model; None if there was none in the time."""
    serves_after: bool = False
    """Whether the healthy model answers at the end."""


@dataclass(frozen=True)
class Plan:
    """What is done to whom, and for how long it is watched."""

    port: int
    healthy: list[Request]
    faulty: list[Request]
    fatal: Request
    right: Right
    rate: float
    """Requests to the healthy model in a second."""
    before_s: float
    watch_s: float


async def watch(plan: Plan) -> Seen:
    """Load, fault, return or none."""
    seen = Seen()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        client = _Client(session, plan)
        stop = asyncio.Event()
        load = asyncio.create_task(_load(client, seen, stop))
        await asyncio.sleep(plan.before_s)
        began = time.monotonic()
        fatal = asyncio.create_task(_fatal(client, seen, began))
        await asyncio.wait([fatal], timeout=SETTLED_S)
        seen.back_s = await _back(client, began, plan.watch_s)
        await asyncio.sleep(1.0)
        stop.set()
        await load
        fatal.cancel()
        await asyncio.gather(fatal, return_exceptions=True)
        seen.serves_after = not await client.ask(plan.healthy, 0, PATIENCE_S)
    return seen


class _Client:
    def __init__(self, session: aiohttp.ClientSession, plan: Plan) -> None:
        self._session = session
        self.plan = plan

    async def ask(self, requests: list[Request], place: int, patience_s: float) -> str:
        """Why it failed; empty if it did not."""
        try:
            status, body = await asyncio.wait_for(self.send(requests[place]), patience_s)
        except TimeoutError:
            return f"no answer in {patience_s:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return type(error).__name__
        if status != 200:
            return f"status {status}"
        return "" if self.plan.right(place, body) else "wrong answer"

    async def send(self, request: Request) -> tuple[int, bytes]:
        """One request; status and body."""
        url = f"http://127.0.0.1:{self.plan.port}{request.path}"
        headers = {**request.headers, "Accept-Encoding": "identity"}
        async with self._session.post(url, data=request.body, headers=headers) as reply:
            return reply.status, await reply.read()


async def _load(client: _Client, seen: Seen, stop: asyncio.Event) -> None:
    began, faulted = time.monotonic(), client.plan.before_s
    open_requests: set[asyncio.Task[None]] = set()
    for number in itertools.count():
        due = began + number / client.plan.rate
        with_pause = due - time.monotonic()
        if with_pause > 0:
            await asyncio.sleep(with_pause)
        if stop.is_set():
            break
        latencies = seen.during_s if due - began >= faulted else seen.before_s
        task = asyncio.create_task(_one(client, seen, number, due, latencies))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
    await asyncio.gather(*open_requests)


async def _one(client: _Client, seen: Seen, number: int, due: float, latencies: list[float]) -> None:
    requests = client.plan.healthy
    failure = await client.ask(requests, number % len(requests), PATIENCE_S)
    seen.sent += 1
    if failure:
        seen.failures.append(failure)
    else:
        latencies.append(time.monotonic() - due)


async def _fatal(client: _Client, seen: Seen, began: float) -> None:
    try:
        status, body = await client.send(client.plan.fatal)
        seen.told = f"{status} {body[:200].decode(errors='replace')}"
    except (aiohttp.ClientError, OSError) as error:
        seen.told = type(error).__name__
    seen.told_s = time.monotonic() - began


async def _back(client: _Client, began: float, watch_s: float) -> float | None:
    for number in itertools.count():
        if not await client.ask(client.plan.faulty, number % len(client.plan.faulty), PROBE_S):
            return time.monotonic() - began
        if time.monotonic() - began > watch_s:
            return None
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("counting has no end")
