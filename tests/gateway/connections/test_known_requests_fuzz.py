"""The corpus of the fuzzer over simulated workers: a fast connection to which its requests are known, one to which they
are new, and aiohttp alone give the same responses, however the bytes are cut.
"""

from __future__ import annotations

import asyncio
import random
import struct
from dataclasses import replace

import pytest
import uvloop

from fake_transport import FakeTransport, Outcome, replies
from http_corpus import CASES, WORDS, finer, post
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.protocol.binary_tensors import HEADER
from scripted_gateway import ScriptedGateway, scripted_gateway

pytestmark = pytest.mark.slow
CUTS = 12
TURNS = 10


def adapted(data: bytes) -> bytes:
    """A case of the corpus for the model `e`, whose worker takes a first value of 0 for the order to answer."""
    data = data.replace(b"models/m/", b"models/e/").replace(b"models/%6d/", b"models/%65/")
    data = data.replace(b"models//m/", b"models//e/").replace(b"models/m%", b"models/e%")
    return data.replace(b"[1, 2.5]", b"[0, 2.5]").replace(struct.pack("<f", 1), bytes(4))


HERE = {name: adapted(data) for name, data in CASES.items()}
WARM = tuple(
    adapted(each)
    for each in (
        post(),
        post(f"{HEADER}: {len(WORDS)}", body=WORDS + struct.pack("<2f", 0, 9)),
        post("X-Request-Id: abc"),
        post("X-Request-Id: 2"),
        post(target="/v2/models/m/versions/1/infer"),
        post("Connection: keep-alive"),
        post(f"{HEADER}: 0", body=struct.pack("<2f", 0, 9)),
    )
)
"""Requests like the good ones of the corpus, with other values."""


async def outcome(gateway: ScriptedGateway, listener: HttpListener, pieces: list[bytes]) -> Outcome:
    """The responses to these bytes on a new connection."""
    transport = FakeTransport(listener())
    for piece in pieces:
        transport.send(piece)
        await quiet(gateway, transport)
    made = Outcome(replies(bytes(transport.written)), transport.closing)
    transport.close()
    await quiet(gateway, transport)
    return made


async def quiet(gateway: ScriptedGateway, transport: FakeTransport) -> None:
    """Let the gateway and its workers turn until nothing more happens."""
    turns, seen = 0, None
    while turns < TURNS:
        for each in gateway.workers:
            each.turn()
        await asyncio.sleep(0)
        now = (len(transport.written), transport.lost, transport.paused, sum(each.events for each in gateway.workers))
        turns = turns + 1 if now == seen else 0
        seen = now


def cut(data: bytes, rng: random.Random) -> list[list[bytes]]:
    """Whole, and cut in two at some places, at those around its blank lines above all."""
    places = set(rng.sample(range(1, len(data)), min(CUTS, len(data) - 1)))
    end = data.find(b"\r\n\r\n") + 4
    places |= {at for at in range(end - 2, end + 3) if 0 < at < len(data)}
    return [[data], *[[data[:at], data[at:]] for at in sorted(places)]]


class Fronts:
    """Listeners of one gateway: aiohttp alone, and two with fast connections, of which one knows the requests."""

    def __init__(self, gateway: ScriptedGateway) -> None:
        self.gateway = gateway
        self.plain, self.cold, self.warm = (gateway.make_listener(each) for each in ("aiohttp", "known", "known"))

    async def warm_up(self) -> None:
        for each in WARM:
            for _ in range(4):
                assert (await outcome(self.gateway, self.warm, [each])).replies[0].status == 200, each

    async def compare(self, pieces: list[bytes]) -> None:
        expected = await outcome(self.gateway, self.plain, pieces)
        right = {expected}
        for how, listener in (("cold", self.cold), ("warm", self.warm)):
            got = await outcome(self.gateway, listener, pieces)
            if got not in right:  # where aiohttp forgets a good request depends on the pieces
                right.add(await outcome(self.gateway, self.plain, finer(pieces)))
            assert got in right, (how, pieces, got, right)

    async def close(self) -> None:
        for each in (self.plain, self.cold, self.warm):
            each.pre_shutdown()
            await each.shutdown(0.1)
        await self.gateway.finish()


async def fronts_of(gateway: ScriptedGateway) -> Fronts:
    gateway.router.configuration = replace(gateway.router.configuration, max_body_bytes=4096)
    gateway.serve("e", "1")
    fronts = Fronts(gateway)
    await fronts.warm_up()
    return fronts


@pytest.mark.parametrize("part", range(6))
def test_known_requests_are_read_as_aiohttp_reads_them(part: int) -> None:
    async def run() -> None:
        async with scripted_gateway("known") as gateway:
            fronts = await fronts_of(gateway)
            for name in sorted(HERE)[part::6]:
                for pieces in cut(HERE[name], random.Random(name)):
                    await fronts.compare(pieces)
            await fronts.close()

    uvloop.run(run())


def test_random_sequences_of_known_requests_and_others_end_as_with_aiohttp() -> None:
    rng = random.Random(11)
    others = [each for each in HERE.values() if len(each) < 600]

    async def run() -> None:
        async with scripted_gateway("known") as gateway:
            fronts = await fronts_of(gateway)
            for _ in range(250):
                requests = [rng.choice(WARM) if rng.random() < 0.6 else rng.choice(others) for _ in range(4)]
                pieces: list[bytes] = []
                for each in requests:
                    at = rng.randint(1, len(each) - 1)
                    pieces += [each[:at], each[at:]] if rng.random() < 0.4 else [each]
                if rng.random() < 0.3:
                    pieces = [b"".join(pieces)]
                await fronts.compare(pieces)
            await fronts.close()

    uvloop.run(run())
