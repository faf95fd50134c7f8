"""Random walks over a gateway: whether requests are recognised as known ones makes no difference to anybody.

The same walk goes over each front (tests/scripted_gateway.py). Clients must get the same bytes, workers the same
requests, operators the same counters; and each request one outcome, which is right for it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import uvloop

from fake_transport import Reply
from harness.scripted_worker import LIES, Do
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, RemovePoisonEntry
from mmsup.ipc.poison_policy import PoisonEntry
from scripted_gateway import (
    MODELS,
    Order,
    Record,
    ScriptedClient,
    ScriptedGateway,
    answer_of,
    known_count,
    scripted_gateway,
)

pytestmark = pytest.mark.slow
VERSIONS = {"m": ("1", "2"), "f": ("1",), "fixed": ("1",), "pair": ("1",), "rows": ("1", "3")}
INSTANCES = {"f": 2}
LARGE = ("pair", "rows")
"""Models with results that need memory; after one of them all later results of the model get some."""
FORMS = ("binary", "binary", "json", "binary in", "binary out")
ORDERS = (
    *[Do.ANSWER] * 24,
    Do.NOT_A_NUMBER,
    Do.OTHER_SHAPE,
    Do.FAIL,
    Do.ASK_FOR_MORE,
    Do.TWICE,
    Do.UNKNOWN_FIRST,
    Do.AS_BATCH,
)
HELD = (Do.HOLD, Do.HOLD, Do.HOLD_RUNNING)
FAR_S = 1e9


@dataclass
class Walker:
    """Decides what happens next. What it decides depends on its seed alone."""

    gateway: ScriptedGateway
    rng: random.Random
    is_orderly: bool
    """Nothing happens before everything has come to rest; else at any moment."""
    kinds: list[Order] = field(default_factory=list)
    backlog: dict[int, tuple[bytes, list[tuple[int, Order]]]] = field(default_factory=dict)
    """By client: what is still to be sent, and the requests in it with the distance of their ends."""
    sent: dict[int, int] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    """Clients that have sent a request in pieces."""

    def __post_init__(self) -> None:
        plain = [self.kind(is_plain=True) for _ in range(3)]
        self.kinds = [self.kind(), self.kind(), *plain, *plain]

    def kind(self, *, is_plain: bool = False) -> Order:
        """Some kind of request; a plain one is served as a known request soon."""
        rng = self.rng
        model = rng.choice(list(VERSIONS))
        if is_plain:
            size = 8 if model == "fixed" else rng.choice((4, 8, 32))
            version, client_id = rng.choice(("", *VERSIONS[model])), rng.choice(("", "seven"))
            return Order((0, 0), model, version, form=rng.choice(FORMS[1:4]), size=size, id=client_id)
        form = "raw" if rng.random() < 0.1 and model != "pair" and model != "rows" else rng.choice(FORMS)
        large = (1200,) if model in LARGE and self.is_orderly else ()  # memory is made by a thread
        size = 8 if model == "fixed" else rng.choice((4, 5, 8, 16, 32, *large))
        lines = rng.choice(((), (), ("X-Request-Id: here",), ("User-Agent: walker", "Accept: */*")))
        outputs = ("d",) if model == "pair" and rng.random() < 0.3 and form != "raw" else ()
        parameters = rng.choice(((), (), (("temperature", 3),), (("priority", 2),), (("timeout", 30_000_000),)))
        return Order(
            (0, 0),
            model,
            rng.choice(("", *VERSIONS[model])),
            form=form,
            size=size,
            id=rng.choice(("", "", "seven")) if form != "raw" else "",
            lines=lines,
            outputs=outputs,
            parameters=parameters if form != "raw" else (),
            rows=rng.choice((1, 3)) if model == "rows" else 1,
        )

    def order(self, client: int) -> Order:
        rng = self.rng
        self.sent[client] = self.sent.get(client, 0) + 1
        tag = (client, self.sent[client])
        kind = rng.choice(self.kinds) if rng.random() < 0.9 else self.kind()
        draw = rng.random()
        do = rng.choice(LIES) if draw < 0.02 else rng.choice(HELD) if draw < 0.12 else rng.choice(ORDERS)
        is_odd = do in (Do.OTHER_SHAPE, Do.ASK_FOR_MORE, Do.TWICE, Do.UNKNOWN_FIRST, Do.AS_BATCH)
        if (is_odd and kind.size > 1000) or (do is Do.ASK_FOR_MORE and not (self.is_orderly and kind.model in LARGE)):
            do = Do.ANSWER  # whether a large result has to be asked for is not the same in two runs
        made = replace(kind, tag=tag, do=do, noise=rng.randrange(200))
        if rng.random() < 0.1 and made.form != "raw":
            made = replace(made, id=f"{client}.{tag[1]}")
        if rng.random() < 0.1:
            made = replace(made, lines=(*made.lines[:0], f"X-Request-Id: r{client}.{tag[1]}"))
        return made

    async def walk(self, steps: int) -> None:
        for number in range(3):
            client = self.gateway.connect()
            for kind in self.kinds[2:5]:
                self.sent[number] = self.sent.get(number, 0) + 1
                client.ask(replace(kind, tag=(number, self.sent[number])))
                await self.gateway.settle()
        for _ in range(steps):
            await self.step()
            if self.is_orderly:
                await self.gateway.settle()
        for number, client in enumerate(self.gateway.clients):
            if not client.has_left and number in self.backlog:
                self.send(number, client, 1 << 30)
        await self.gateway.settle()

    async def step(self) -> None:
        draw, rng, gateway = self.rng.random(), self.rng, self.gateway
        here = [number for number, each in enumerate(gateway.clients) if not each.has_left]
        if draw < 0.04 and len(here) < 6 and len(gateway.clients) < 200:
            gateway.connect()
        elif draw < 0.07 and len(here) > 2:
            number = rng.choice(here)
            if self.is_slow(number):
                await gateway.settle()  # how far a task or a thread has come is not the same in two runs
            self.backlog.pop(number, None)
            gateway.clients[number].leave()
        elif draw < 0.20:
            await gateway.settle()
        elif draw < 0.28:
            gateway.release(backwards=rng.random() < 0.5)
        elif draw < 0.33:
            await self.befall()
        else:
            number = rng.choice(here)
            self.send(number, gateway.clients[number], rng.choice((*[1 << 30] * 6, rng.randint(1, 400), 1)))
            if rng.random() < 0.3:
                await asyncio.sleep(0)

    def send(self, number: int, client: ScriptedClient, most: int) -> None:
        data, ends = self.backlog.pop(number, (b"", []))
        if not data:
            if self.sent.get(number, 0) > 240:
                return
            for order in [self.order(number) for _ in range(self.rng.choice((1, 1, 1, 2, 4)))]:
                data += order.packed()
                ends.append((len(data), order))
        part, rest = data[:most], data[most:]
        if rest:
            self.cut.add(number)
            self.backlog[number] = rest, [(end - len(part), order) for end, order in ends if end > len(part)]
        client.send(part, *[order for end, order in ends if end <= len(part)])

    def is_slow(self, number: int) -> bool:
        """Whether something of this client may be served by a task or a thread."""
        sent = self.gateway.clients[number].complete
        return number in self.cut or any(each.size > 1000 or each.do is Do.ASK_FOR_MORE for each in sent)

    async def befall(self) -> None:
        """Something happens to a model or a worker."""
        rng, gateway = self.rng, self.gateway
        what = rng.randrange(8)
        model = rng.choice(list(VERSIONS))
        if what == 0:
            await gateway.settle()  # where the batch that runs is known
            link = rng.choice([each for each in gateway.links if not each.closed])
            gateway.lose(link, rng.choice(("worker_crashed", "worker_hung", "worker_oom")))
            gateway.replace_lost()
        elif what == 1:
            link = rng.choice([each for each in gateway.links if not each.closed])
            gateway.router.links.stop_routing(link.worker_id)
            gateway.replace_lost()
        elif what == 2:
            gateway.put_route(model, rng.choice(VERSIONS[model]))
        elif what == 3:
            await gateway.settle()
            gateway.router.routes.drop(model)
            await self.all_ask()
            gateway.put_route(model, VERSIONS[model][0])
        elif what == 4:
            gateway.router.links.close_drained()
            gateway.replace_lost()
        elif what == 5:
            self.block(model, blocked=rng.random() < 0.5)
            await self.all_ask()
            gateway.router.poison_requests.on_message(RemovePoisonEntry(model, b""))
        elif not self.is_orderly:  # which of several workers is the least loaded may depend on the front
            gateway.add_worker(model, rng.choice(VERSIONS[model]))
            gateway.router.links.release_idle_memory()

    async def all_ask(self) -> None:
        """Every client sends something."""
        for number, client in enumerate(self.gateway.clients):
            if not client.has_left:
                self.send(number, client, 1 << 30)
        if self.is_orderly or self.rng.random() < 0.5:
            await self.gateway.settle()

    def block(self, model: str, *, blocked: bool) -> None:
        """One set of inputs, which nobody has sent so far, is on the list of the model."""
        version = VERSIONS[model][0]
        tensors = [Tensor(each.name, each.datatype, (8,), bytes(8)) for each in MODELS[model].inputs]
        entry = PoisonEntry(fingerprint(model, version, tensors), version, 2, blocked, FAR_S)
        self.gateway.router.poison_requests.on_message(AddPoisonEntries(model, (entry,)))


async def run(front: str, seed: str, steps: int, *, is_orderly: bool) -> Record:
    async with scripted_gateway(front) as gateway:
        for name, versions in VERSIONS.items():
            gateway.serve(name, *versions, instances=1 if is_orderly else INSTANCES.get(name, 1))
        gateway.restarts = True
        walker = Walker(gateway, random.Random(seed), is_orderly)
        await walker.walk(steps)
        record = await gateway.finish()
        assert bool(known_count(gateway)) == (front == "known")
        for client in gateway.clients:
            check(client)
    return record


def check(client: ScriptedClient) -> None:
    """Each request of a client has one outcome, which is right for it."""
    got = client.replies()
    assert len(got) == len(client.complete) or (len(got) < len(client.complete) and client.has_left)
    for order, reply in zip(client.complete, got, strict=False):
        assert is_right(order, reply), (order, reply)


def is_right(order: Order, reply: Reply) -> bool:
    document = json.loads(reply.body[: int(dict(reply.headers).get("Inference-Header-Content-Length", 1 << 30))])
    given = [each.partition(": ")[2] for each in order.lines if each.startswith("X-Request-Id")]
    echo = [value for name, value in reply.headers if name.lower() == "x-request-id"]
    if echo != given:
        return False
    if reply.status != 200:
        codes = {"worker_crashed", "worker_hung", "worker_oom", "bad_worker_reply", "unknown_model"}
        codes |= {"inference_failed"} if order.do is Do.FAIL else set()
        return document["code"] in codes and (order.do is not Do.ANSWER or document["code"] != "inference_failed")
    if order.do in LIES or order.do is Do.FAIL or document.get("id", "") != order.id:
        return False
    versions = [order.version] if order.version else VERSIONS[order.model]
    if document["model_version"] not in versions:
        return False
    if order.do is Do.NOT_A_NUMBER:
        return True
    expected = order.expected(int(document["model_version"]))
    if order.do is Do.OTHER_SHAPE:
        return {name: len(each) for name, each in answer_of(reply).items()} == dict.fromkeys(
            expected, order.rows * (order.size // 2)
        )
    return answer_of(reply) == expected


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def compare(fronts: tuple[str, ...], seed: str, steps: int, loop: str, *, is_orderly: bool) -> None:
    """What the workers got is compared where one thing happens at a time: else a client may leave before or after its
    request has left."""
    shared = ("replies", "closed", "counters", "batches", *(("seen", "unexpected_replies") if is_orderly else ()))
    records = []
    for front in fronts:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            records.append(runner.run(run(front, seed, steps, is_orderly=is_orderly)))
    first = records[0]
    for front, each in zip(fronts[1:], records[1:], strict=True):
        for name in shared:
            assert getattr(first, name) == getattr(each, name), f"seed {seed}: {fronts[0]} and {front}: {name}"


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", range(4))
def test_known_requests_are_served_as_unknown_ones_whatever_happens(number: int, loop: str) -> None:
    compare(("known", "unknown"), f"any {number}", 200, loop, is_orderly=False)


@pytest.mark.parametrize("number", range(3))
def test_all_fronts_serve_alike_where_one_thing_happens_at_a_time(number: int) -> None:
    compare(("known", "unknown", "aiohttp"), f"orderly {number}", 120, "uvloop", is_orderly=True)
