"""The same bytes to a fast connection and to aiohttp alone: the same responses, the connection open or closed alike.

Every case goes whole, cut in two at every byte, and byte by byte. Where a good request and a bad one come in one piece,
aiohttp forgets the good one; how much it forgets depends on where the bytes are cut. There the fast connection
must do what aiohttp does for some way of cutting the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

import pytest
import uvloop

from fake_router import FakeRouter, metadata
from fake_transport import Outcome, listener, outcome
from http_corpus import CASES, finer, post
from mmsup.ipc.errors import ServerError
from mmsup.ipc.memory.counters import CounterTable, make_counter_table

pytestmark = pytest.mark.slow


def house() -> FakeRouter:
    made = FakeRouter(max_body_bytes=4096)
    made.serve("m", metadata(("X", "FP32", (-1,))))
    made.answers["index"] = []
    return made


def cuts(data: bytes, rng: random.Random) -> list[list[bytes]]:
    """Ways to cut some bytes: all of the short, some of the long."""
    places = range(1, len(data))
    chosen = places if len(data) <= LIMIT else sorted(rng.sample(places, LIMIT))
    single = [data[at : at + 1] for at in range(len(data))] if len(data) <= LIMIT else []
    three = [sorted(rng.sample(places, 2)) for _ in range(20)]
    return [
        [data],
        *[[data[:at], data[at:]] for at in chosen],
        *([single] if single else []),
        *[[data[:first], data[first:second], data[second:]] for first, second in three],
    ]


LIMIT = int(os.environ.get("MMSUP_TEST_CUTS", "400"))
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def compare(data: bytes, backend: Callable[[], FakeRouter], loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Send it both ways, in all ways of cutting it."""

    async def run() -> None:
        made, fd = backend(), make_counter_table()
        fast, plain = (listener(made, CounterTable(fd), fast=each) for each in (True, False))
        try:
            ways = cuts(data, random.Random(len(data)))
            other: list[tuple[list[bytes], Outcome]] = []
            right: set[Outcome] = set()
            for pieces in ways:
                expected, got = await outcome(plain, pieces), await outcome(fast, pieces)
                right.add(expected)
                if got != expected:
                    other.append((pieces, got))
            if other:
                right |= {await outcome(plain, finer(pieces)) for pieces in ways}
            for pieces, got in other:
                assert got in right, (pieces, got, right)
            assert made.unclosed_requests == 0
        finally:
            for each in (fast, plain):
                each.pre_shutdown()
                await each.shutdown(0.1)
            made.threads.shutdown()
            os.close(fd)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("case", CASES)
def test_a_fast_connection_treats_all_inputs_as_aiohttp_does(
    case: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    compare(CASES[case], house, loop)


def test_a_fast_connection_refuses_as_aiohttp_does() -> None:
    def full() -> FakeRouter:
        made = house()
        made.refusal = ServerError("queue_full", "Exceeds maximum queue size", retry_after_s=3)
        return made

    def draining() -> FakeRouter:
        made = house()
        made.refusal = ServerError("draining", "the server is stopping", retry_after_s=5)
        return made

    for backend in (full, draining):
        compare(post() + post(), backend, uvloop.new_event_loop)


def test_random_sequences_of_requests_end_as_with_aiohttp() -> None:
    """Pieces of the corpus, joined, doubled and cut at random."""
    rng = random.Random(7)
    good = [each for each in CASES.values() if len(each) < 600]

    async def run() -> None:
        made, fd = house(), make_counter_table()
        fast, plain = (listener(made, CounterTable(fd), fast=each) for each in (True, False))
        try:
            for _ in range(400):
                requests = [rng.choice(good) for _ in range(rng.randint(1, 4))]
                pieces: list[bytes] = []
                for each in requests:
                    at = rng.randint(1, len(each) - 1)
                    pieces += [each[:at], each[at:]] if rng.random() < 0.5 else [each]
                got, expected = await outcome(fast, pieces), await outcome(plain, pieces)
                assert got == expected or got == await outcome(plain, finer(pieces)), (pieces, got, expected)
            assert made.unclosed_requests == 0
        finally:
            for made_by in (fast, plain):
                made_by.pre_shutdown()
                await made_by.shutdown(0.1)
            made.threads.shutdown()
            os.close(fd)

    uvloop.run(run())
