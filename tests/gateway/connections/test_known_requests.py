"""Requests that are recognised as known ones are served as all others: one thing after the other that may befall them.

Every test runs on fast connections that use known requests and on those that do not.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import uvloop

from harness.scripted_worker import LIES, Do
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.controller_channel import link_closed_message
from mmsup.gateway.dispatch.link_channel import REPLIES_PER_ITERATION
from mmsup.gateway.http.host_policy import listener_policy
from mmsup.gateway.infer.fair_queue import SOLE_FLOW_LIMIT
from mmsup.gateway.protocol.request_fingerprint import Tensor, fingerprint
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, RemovePoisonEntry
from mmsup.ipc.poison_policy import PoisonEntry
from mmsup.ipc.specs import TensorSpec
from scripted_gateway import (
    MODELS,
    Order,
    ScriptedClient,
    ScriptedGateway,
    answer_of,
    known_count,
    scripted_gateway,
)

pytestmark = pytest.mark.slow
FORMS = ("binary", "json", "binary in", "binary out")
fast_fronts = pytest.mark.parametrize("front", ["known", "unknown"])


def run(front: str, test: Callable[[ScriptedGateway], Awaitable[None]]) -> None:
    """Run a test with a gateway; at the end nothing may be left of any request."""

    async def whole() -> None:
        async with asyncio.timeout(60), scripted_gateway(front) as gateway:
            await test(gateway)
            await gateway.finish()

    uvloop.run(whole())


async def warm(gateway: ScriptedGateway, client: ScriptedClient, *kinds: Order) -> None:
    """Send each kind of request until it is known, with other values every time."""
    for kind in kinds:
        for number in range(4):
            await asked(gateway, client, kind.again(200 + number))


async def asked(gateway: ScriptedGateway, client: ScriptedClient, order: Order) -> None:
    """One request with a right answer."""
    client.ask(order)
    await gateway.settle()
    status, answer = client.read()
    assert (status, answer) == (200, order.expected(int(model_version(client)))), order


def model_version(client: ScriptedClient) -> str:
    """Of the last response."""
    body = client.replies()[-1].body
    return str(json.JSONDecoder().raw_decode(body.decode("latin-1"))[0]["model_version"])


def code(client: ScriptedClient) -> tuple[int, str]:
    """Status and error code of the last response."""
    last = client.replies()[-1]
    return last.status, "" if last.status == 200 else json.loads(last.body)["code"]


# Replies that are not as expected.


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lie", LIES, ids=lambda each: each.name)
def test_a_reply_that_lies_fails_its_request_and_ends_the_link(lie: Do, form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        gateway.restarts = True
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        await warm(gateway, client, kind)
        link = gateway.links[0]
        client.ask(kind.again(1, lie))
        await gateway.settle()
        assert code(client) == (502, "bad_worker_reply")
        assert link.closed
        await warm(gateway, client, kind)

    run(front, test)


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("do", [Do.OTHER_SHAPE, Do.FAIL, Do.ASK_FOR_MORE, Do.TWICE, Do.UNKNOWN_FIRST, Do.AS_BATCH])
def test_a_known_request_may_be_answered_in_any_other_way(do: Do, form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        await warm(gateway, client, kind)
        odd = kind.again(1, do)
        client.ask(odd)
        await gateway.settle()
        if do is Do.FAIL:
            assert code(client) == (500, "inference_failed")
        else:
            expected = odd.expected(1)["y"]
            assert client.read() == (200, {"y": expected[: len(expected) // (2 if do is Do.OTHER_SHAPE else 1)]})
        await warm(gateway, client, kind)
        assert gateway.links[0].in_flight.unexpected_replies == (do in (Do.TWICE, Do.UNKNOWN_FIRST))

    run(front, test)


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
def test_several_known_requests_in_flight_may_be_answered_in_another_way_at_once(form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        clients, kind = [gateway.connect() for _ in range(4)], Order((1, 1), "f", form=form)
        await warm(gateway, clients[0], kind)
        for round_ in range(3):
            for client in clients:
                client.ask(kind.again(round_, Do.OTHER_SHAPE))
            await gateway.settle()
            for client in clients:
                expected = kind.again(round_, Do.OTHER_SHAPE).expected(1)["y"]
                assert client.read() == (200, {"y": expected[: len(expected) // 2]})
        await warm(gateway, clients[0], kind)

    run(front, test)


@fast_fronts
def test_outputs_that_are_no_numbers_are_written_and_read_in_every_form(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        kinds = [Order((number, 1), "f", form=FORMS[number % 4]) for number in range(8)]
        clients = [gateway.connect() for _ in kinds]
        for client, kind in zip(clients, kinds, strict=True):
            await warm(gateway, client, kind)
        orders = [kind.again(1, Do.NOT_A_NUMBER if number < 4 else Do.ANSWER) for number, kind in enumerate(kinds)]
        for client, order in zip(clients, orders, strict=True):
            client.ask(order)
        await gateway.settle()
        for number, (client, order) in enumerate(zip(clients, orders, strict=True)):
            if number >= 4:
                assert client.read() == (200, order.expected(1))
            else:
                status, answer = client.read()
                assert (status, answer["y"][2:]) == (200, order.expected(1)["y"][2:])
                assert math.isnan(answer["y"][0])
                assert math.isinf(answer["y"][1])
            await asked(gateway, client, kinds[number].again(2))

    run(front, test)


@fast_fronts
def test_replies_in_reverse_order_reach_their_own_clients(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        kinds = [Order((number, 1), "f", form=FORMS[number % 4], size=4 + number % 3) for number in range(24)]
        clients = [gateway.connect() for _ in kinds]
        for client, kind in zip(clients, kinds, strict=True):
            await warm(gateway, client, kind)
        held = [kind.again(1, Do.HOLD) for kind in kinds]
        for client, order in zip(clients, held, strict=True):
            client.ask(order)
        await gateway.settle()
        assert len(gateway.held_tags()) == len(clients)
        gateway.release(backwards=True)
        await gateway.settle()
        assert [each.read() for each in clients] == [(200, each.expected(1)) for each in held]

    run(front, test)


@fast_fronts
def test_a_late_reply_meets_no_later_request(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, other, kind = gateway.connect(), gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        client.ask(kind.again(1, Do.HOLD))
        await gateway.settle()
        (worker,) = gateway.workers
        held = dict(worker.held)
        client.leave()
        await gateway.settle()
        assert worker.cancelled == 1
        await asked(gateway, other, kind.again(2))
        worker.held = held
        worker.release()
        await asked(gateway, other, kind.again(3))
        assert gateway.counters.totals()["f", "1"]["fail_CANCELED"] == 1

    run(front, test)


# Bytes as they come.


@fast_fronts
def test_known_requests_may_be_cut_at_every_byte(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        gateway.serve("m", "1")
        kinds = (
            Order((1, 1), "f", form="binary"),
            Order((1, 2), "f", form="json", id="a"),
            Order((1, 3), "m", form="raw"),
        )
        await warm(gateway, gateway.connect(), *kinds)
        whole = b"".join(each.packed() for each in kinds)
        for at in range(1, len(whole)):
            client = gateway.connect()
            client.send(whole[:at])
            await asyncio.sleep(0)
            client.send(whole[at:], *kinds)
            await gateway.settle()
            assert [reply.status for reply in client.replies()] == [200] * 3, at
            assert [answer_of(reply) for reply in client.replies()] == [each.expected(1) for each in kinds], at
            client.leave()
            gateway.clients.remove(client)

    run(front, test)


@fast_fronts
def test_known_requests_may_come_in_any_pieces(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        rng = random.Random(3)
        gateway.serve("f", "1")
        kinds = [Order((1, 1), "f", form=form, size=size) for form in FORMS for size in (4, 32)]
        await warm(gateway, gateway.connect(), *kinds)
        for round_ in range(60):
            client = gateway.connect()
            sent = [replace(rng.choice(kinds), tag=(2, number), noise=round_) for number in range(12)]
            whole = b"".join(each.packed() for each in sent)
            while whole:
                size = rng.choice((1, 7, rng.randint(1, 500), 5000))
                part, whole = whole[:size], whole[size:]
                client.send(part, *(sent if not whole else ()))
                if rng.random() < 0.5:
                    await asyncio.sleep(0)
                for worker in gateway.workers:
                    worker.turn()
            await gateway.settle()
            assert [answer_of(reply) for reply in client.replies()] == [each.expected(1) for each in sent]
            client.leave()
            gateway.clients.remove(client)

    run(front, test)


@fast_fronts
def test_a_request_that_differs_in_one_byte_is_not_taken_for_the_known_one(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client = gateway.connect()
        for form in FORMS:
            known = Order((1, 1), "f", form=form)
            await warm(gateway, client, known)
            for other in (replace(known, model="g"), replace(known, version="2"), replace(known, size=9, form=form)):
                client.ask(replace(other, model="f") if other.model == "g" else other)
                await gateway.settle()
                if other.version == "2":
                    assert code(client) == (404, "unknown_version")
                else:
                    assert client.read()[0] == 200
            whole = known.packed()
            for old, new in ((b'"x"', b'"z"'), (b"FP32", b"FP64"), (b"[8]", b"[7]"), (b"localhost", b"localhosT")):
                client.send(whole.replace(old, new), known)
                await gateway.settle()
                assert client.replies()[-1].status == (200 if old == b"localhost" else 400), (form, old)
            await asked(gateway, client, known.again(2))

    run(front, test)


@fast_fronts
def test_values_that_are_not_valid_are_refused_in_a_known_json_request(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        gateway.serve("m", "1")
        client = gateway.connect()
        for model in ("f", "m"):
            known = Order((1, 1), model, form="json")
            await warm(gateway, client, known)
            text = known.packed()
            at = text.index(b'"data": [') + len(b'"data": ')
            end = text.index(b"]", at) + 1
            for data, status in (
                (b"[0]", 400), (b"[0,,1,1,4,5,6,7,8]", 400), (b"[0,1,1,4,5,6,7,1e999]", 400),
                (b"[nul,1,1,4,5,6,7,8]", 400), (b"[0,1,1,4,5,6,7,8,9]", 400), (b"[]", 400),
                (b"[0,1,1,4,5,6,7,true]", None), (b"[0,1,1,4,5,6,7,-1]", None), (b"[0,1,1,4,5,6,7,08]", 400),
                (b"[ 0 , 1,1 ,4,5,6,7,8 ]", 200), (b"[0,1,1,4,5,6,7,1e2]", None), (b"5", 400), (b"null", 400),
                (b"true", 400), (b'{"a":1}', 400), (b'"01145678"', 400), (b"[", 400), (b"", 400),
            ):  # fmt: skip
                body = text[text.index(b"\r\n\r\n") + 4 : at] + data + text[end:]
                head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                client.send(head % (model.encode(), len(body)) + body, known)
                await gateway.settle()
                status_seen = client.replies()[-1].status
                assert status_seen in ((status,) if status else (200, 400)), (model, data)
            await asked(gateway, client, known.again(2))

    run(front, test)


@fast_fronts
@pytest.mark.parametrize("form", ["binary", "json"])
def test_text_that_is_no_json_is_refused_where_a_known_request_is_written_much_alike(front: str, form: str) -> None:
    """Zero bytes are not taken for an id that was cut out, nor other control characters for white space."""

    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("m", "1")
        client = gateway.connect()
        known = Order((1, 1), form=form, id="abcd")
        await warm(gateway, client, known)
        alike = [(b"abcd", b"\0" * 4)]
        if form == "json":
            alike += [(b'"data": [', b'"data":\x0b['), (b'"data": [', b'"data"\x0c:[')]
        for old, new in alike:
            client.send(known.again(2).packed().replace(old, new), known)
            await gateway.settle()
            assert client.replies()[-1].status == 400, new
            await asked(gateway, client, known.again(3))

    run(front, test)


@fast_fronts
def test_eight_kinds_of_requests_in_turn_over_one_connection(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("m", "1", "2")
        gateway.serve("f", "1", "2", "3")
        gateway.serve("pair", "1")
        gateway.serve("rows", "1")
        gateway.serve("fixed", "1")
        named = [("m", "1"), ("m", "2"), ("f", ""), ("f", "2"), ("f", "3"), ("pair", ""), ("rows", ""), ("fixed", "")]
        kinds = [Order((1, 1), model, version, form=form) for model, version in named for form in FORMS]
        client = gateway.connect()
        await warm(gateway, client, *kinds)
        before = known_count(gateway)
        for number in range(5):
            for kind in kinds:
                await asked(gateway, client, kind.again(number))
        if before is not None and front == "known":
            assert known_count(gateway) == before + 5 * len(kinds)

    run(front, test)


@fast_fronts
def test_ids_and_headers_that_are_repeated_are_those_of_the_request(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client = gateway.connect()
        for form in FORMS:
            for number in range(12):
                line = ("X-Request-Id: same", f"X-Request-Id: h{number}", "X-Other: a")[number % 3]
                order = Order((1, number), "f", form=form, id=("", "same", f"i{number}")[number // 4], lines=(line,))
                await asked(gateway, client, order)
                last = client.replies()[-1]
                given = [value for name, value in last.headers if name == "X-Request-Id"]
                assert given == ([line.partition(": ")[2]] if "Request" in line else [])
                body = json.JSONDecoder().raw_decode(last.body.decode("latin-1"))[0]
                assert body.get("id", "") == order.id

    run(front, test)


@fast_fronts
def test_an_error_of_a_known_request_names_the_id_of_its_client(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client = gateway.connect()
        for form in FORMS:
            for kind in (
                Order((1, 1), "f", form=form, id="mine"),
                Order((1, 1), "f", form=form, lines=("X-Request-Id: mine",)),
            ):
                await warm(gateway, client, kind)
                client.ask(kind.again(1, Do.FAIL))
                await gateway.settle()
                assert json.loads(client.replies()[-1].body)["request_id"] == "mine", kind

    run(front, test)


# Routes.


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
def test_a_known_request_follows_the_default_version(form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", "2")
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        for version in ("1", "2", "1", "2"):
            gateway.put_route("f", version)
            for number in range(3):
                client.ask(kind.again(number))
                await gateway.settle()
                assert client.read() == (200, kind.again(number).expected(int(version)))
                assert model_version(client) == version

    run(front, test)


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answered", range(4))
def test_a_default_version_that_changes_while_a_request_is_in_flight_is_that_of_the_next(
    answered: int, form: str, front: str
) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", "2")
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        for number in range(answered):
            await asked(gateway, client, kind.again(number))
        client.ask(kind.again(9, Do.HOLD))
        await gateway.settle()
        gateway.put_route("f", "2")
        gateway.release()
        await gateway.settle()
        assert client.read() == (200, kind.again(9, Do.HOLD).expected(1))
        for number in range(3):
            client.ask(kind.again(number))
            await gateway.settle()
            assert client.read() == (200, kind.again(number).expected(2))
            assert model_version(client) == "2"

    run(front, test)


@fast_fronts
def test_a_known_request_to_a_model_that_is_gone_is_refused_and_served_when_it_is_back(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        gateway.router.routes.drop("f")
        client.ask(kind.again(1))
        await gateway.settle()
        assert code(client) == (404, "unknown_model")
        gateway.put_route("f", "1")
        await asked(gateway, client, kind.again(2))
        gateway.put_route("f", "1", wanted=False)
        client.ask(kind.again(3))
        await gateway.settle()
        assert code(client) == (404, "unknown_model")
        gateway.put_route("f", "1")
        await asked(gateway, client, kind.again(4))
        gateway.router.routes.begin_sync()
        gateway.router.routes.end_sync()
        client.ask(kind.again(5))
        await gateway.settle()
        assert code(client) == (404, "unknown_model")

    run(front, test)


@fast_fronts
def test_a_worker_that_is_replaced_gets_no_more_known_requests_and_answers_those_that_it_has(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, other, kind = gateway.connect(), gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        client.ask(kind.again(1, Do.HOLD))
        await gateway.settle()
        old, link = gateway.workers[0], gateway.links[0]
        before = len(old.seen)
        gateway.add_worker("f", "1")
        gateway.router.links.stop_routing(link.worker_id)
        for number in range(3):
            await asked(gateway, other, kind.again(number))
        assert len(old.seen) == before
        gateway.router.links.close_drained()
        assert not link.closed
        gateway.release()
        await gateway.settle()
        assert client.read() == (200, kind.again(1).expected(1))
        gateway.router.links.close_drained()
        assert link.closed

    run(front, test)


@fast_fronts
def test_a_known_request_waits_for_the_next_worker(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        gateway.lose(gateway.links[0], "worker_crashed")
        client.ask(kind.again(1))
        for _ in range(30):
            await asyncio.sleep(0)
        assert gateway.router.waiters.priorities, "it waits"
        gateway.add_worker("f", "1")
        await gateway.settle()
        assert client.read() == (200, kind.again(1).expected(1))
        await warm(gateway, client, kind)

    run(front, test)


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
def test_a_known_request_is_checked_against_the_metadata_of_the_worker_that_serves_it(form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        await warm(gateway, client, kind)
        first = gateway.links[0]
        changed = replace(MODELS["f"], inputs=(TensorSpec("x", "FP32", (5,)),))
        gateway.add_worker("f", "1", changed)
        gateway.router.links.stop_routing(first.worker_id)
        client.ask(kind.again(1))
        await gateway.settle()
        assert client.replies()[-1].status == 400
        await warm(gateway, client, replace(kind, size=5))
        gateway.add_worker("f", "1")
        gateway.router.links.stop_routing(gateway.links[1].worker_id)
        await warm(gateway, client, kind)

    run(front, test)


@fast_fronts
def test_known_requests_go_to_the_least_loaded_of_several_workers(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", instances=3)
        kind = Order((1, 1), "f")
        clients = [gateway.connect() for _ in range(12)]
        await warm(gateway, clients[0], kind)
        for number, client in enumerate(clients):
            client.ask(replace(kind, tag=(9, number), do=Do.HOLD))
            if number % 2:
                await gateway.settle()
        assert [len(each.held) for each in gateway.workers] == [4, 4, 4]
        gateway.workers[1].release()
        await gateway.settle()
        for number, client in enumerate(each for each in clients if each.replies() and each is not clients[0]):
            client.ask(replace(kind, tag=(10, number), do=Do.HOLD))
        await gateway.settle()
        assert len(gateway.workers[1].held) in (3, 4)

    run(front, test)


# Limits.


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
def test_the_deadline_of_a_known_request_is_enforced(form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", deadline_s=60.0)
        gateway.serve("m", "1", deadline_s=0.05)
        client = gateway.connect()
        for kind in (
            Order((1, 1), "f", form=form, parameters=(("timeout", 50_000),)),
            Order((1, 1), "m", form="raw" if form == "binary" else form),
        ):
            await warm(gateway, client, kind)
            answered = len(client.replies())
            began = time.monotonic()
            client.ask(kind.again(1, Do.HOLD))
            while len(client.replies()) == answered:
                for worker in gateway.workers:
                    worker.turn()
                await asyncio.sleep(0.001)
                assert time.monotonic() < began + 10
            assert time.monotonic() - began >= 0.04
            assert code(client) == (504, "deadline_exceeded")
            await gateway.settle()
            assert sum(each.cancelled for each in gateway.workers) == 1
            for worker in gateway.workers:
                worker.cancelled = 0
            await asked(gateway, client, kind.again(2))

    run(front, test)


@fast_fronts
def test_a_worker_without_progress_on_known_requests_is_noticed(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", hang_limit_s=5.0)
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        client.ask(kind.again(1, Do.HOLD))
        await gateway.settle()
        now_s = time.monotonic()
        assert not gateway.router.links.overdue(now_s + 4.0)
        assert [link for link, _ in gateway.router.links.overdue(now_s + 6.0)] == gateway.links
        gateway.release()
        await gateway.settle()
        assert not gateway.router.links.overdue(now_s + 6.0)

    run(front, test)


@fast_fronts
def test_known_requests_count_toward_the_limit_of_their_model(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1", max_queue=4)
        gateway.serve("m", "1")
        kinds = Order((1, 1), "f"), Order((1, 1), "m")
        clients = [gateway.connect() for _ in range(8)]
        await warm(gateway, clients[0], *kinds)
        for number, client in enumerate(clients[:6]):
            client.ask(replace(kinds[0], tag=(2, number), do=Do.HOLD))
        await gateway.settle()
        assert len(gateway.held_tags()) == 4
        assert [code(each) for each in clients[4:6]] == [(503, "queue_full")] * 2
        assert gateway.router.admission.requests_by_model == {"f": 4}
        await asked(gateway, clients[6], kinds[1].again(1))
        gateway.release()
        await gateway.settle()
        assert [each.read()[0] for each in clients[:4]] == [200] * 4
        await asked(gateway, clients[7], kinds[0].again(1))
        assert sum(row["fail_REJECTED"] for row in gateway.counters.totals().values()) == 2

    run(front, test)


@fast_fronts
def test_one_iteration_starts_a_bounded_number_of_known_requests_of_a_model(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        kind = Order((1, 1), "f")
        clients = [gateway.connect() for _ in range(2 * SOLE_FLOW_LIMIT)]
        await warm(gateway, clients[0], kind)
        await asyncio.sleep(0)
        for number, client in enumerate(clients):
            client.ask(replace(kind, tag=(2, number), do=Do.HOLD))
        assert len(gateway.links[0].in_flight.requests) <= SOLE_FLOW_LIMIT
        await gateway.settle()
        assert len(gateway.held_tags()) == len(clients)

    run(front, test)


@fast_fronts
def test_a_bounded_number_of_known_replies_is_written_in_one_iteration(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        kind = Order((1, 1), "f")
        clients = [gateway.connect() for _ in range(30)]
        await warm(gateway, clients[0], kind)
        for number, client in enumerate(clients):
            client.ask(replace(kind, tag=(2, number), do=Do.HOLD))
        await gateway.settle()
        gateway.release()
        written = sum(len(each.replies()) for each in clients)
        for _ in range(60):
            await asyncio.sleep(0)
            now = sum(len(each.replies()) for each in clients)
            assert now - written <= REPLIES_PER_ITERATION
            written = now
        assert all(each.replies() for each in clients)

    run(front, test)


# What becomes of the server, the model and the inputs.


@fast_fronts
@pytest.mark.parametrize("form", FORMS)
def test_known_inputs_on_the_poison_list_are_refused_or_run_alone(form: str, front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f", form=form)
        await warm(gateway, client, kind)
        lists = gateway.router.poison_requests
        poison, suspect = kind.again(77), kind.again(78)
        for order, blocked in ((poison, True), (suspect, False)):
            tensors = [Tensor("x", "FP32", (order.size,), order.inputs()["x"].tobytes())]
            entry = PoisonEntry(fingerprint("f", "1", tensors), "1", 2, blocked, time.monotonic() + 600)
            lists.on_message(AddPoisonEntries("f", (entry,)))
        client.ask(poison)
        await gateway.settle()
        assert code(client) == (422, "request_quarantined")
        await asked(gateway, client, suspect)
        await asked(gateway, client, kind.again(3))
        alone = {each.tag: each.signature.runs_alone for each in gateway.workers[0].seen}
        assert (alone[1, 78], alone[1, 3]) == (True, False)
        assert (1, 77) not in alone
        lists.on_message(RemovePoisonEntry("f", b""))
        await asked(gateway, client, poison)
        await warm(gateway, client, kind)

    run(front, test)


@fast_fronts
def test_a_worker_that_dies_with_known_requests_fails_what_ran_and_loses_nothing_else(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        gateway.restarts = True
        closed = []
        gateway.router.send_link_closed = lambda link: closed.append(link_closed_message(link, time.monotonic_ns()))
        kinds = [Order((number, 1), "f", form=FORMS[number % 4], id=f"c{number}") for number in range(12)]
        clients = [gateway.connect() for _ in kinds]
        for client, kind in zip(clients, kinds, strict=True):
            await warm(gateway, client, kind)
        for number, (client, kind) in enumerate(zip(clients, kinds, strict=True)):
            client.ask(kind.again(1, Do.HOLD_RUNNING if number < 3 else Do.HOLD))
            await gateway.settle()
        clients[11].leave()
        gateway.lose(gateway.links[0], "worker_crashed", "killed by signal 9")
        await gateway.settle()
        assert [code(each) for each in clients[:3]] == [(503, "worker_crashed")] * 3
        assert len(gateway.held_tags()) == 8
        gateway.release()
        await gateway.settle()
        for client, kind in list(zip(clients, kinds, strict=True))[3:11]:
            assert client.read() == (200, kind.again(1).expected(1))
        (told,) = closed
        assert (told.in_flight, told.begun) == (12, 3)
        assert sorted(each.id for each in told.requests) == sorted(f"c{number}" for number in range(12))
        assert [each.id for each in told.requests if each.begun] == ["c0", "c1", "c2"]
        suspects = gateway.router.poison_requests
        assert suspects.has_entries("f")
        for client, kind in list(zip(clients, kinds, strict=True))[:3]:
            client.ask(kind.again(1))  # the values are others: 0 and not HOLD_RUNNING comes first
            await gateway.settle()
            assert client.read()[0] == 200

    run(front, test)


@fast_fronts
def test_a_server_that_drains_answers_known_requests_in_flight_and_refuses_new_ones(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, other, kind = gateway.connect(), gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        client.ask(kind.again(1, Do.HOLD))
        await gateway.settle()
        gateway.router.status.drain()
        drained = asyncio.create_task(gateway.router.wait_until_drained())
        other.ask(kind.again(2))
        await gateway.settle()
        assert code(other) == (503, "draining")
        assert not drained.done()
        gateway.release()
        await gateway.settle()
        assert client.read() == (200, kind.again(1).expected(1))
        await drained

    run(front, test)


@fast_fronts
def test_a_retired_gateway_closes_each_connection_after_one_more_known_request(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        gateway.router.status.retire()
        client.ask(kind.again(1))
        await gateway.settle()
        assert ("connection", "close") in [(name.lower(), value) for name, value in client.replies()[-1].headers]
        assert client.read() == (200, kind.again(1).expected(1))
        assert client.transport.closing

    run(front, test)


@fast_fronts
def test_a_connection_that_is_to_close_ends_with_the_known_request_in_flight(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        client.ask(kind.again(1, Do.HOLD))
        await gateway.settle()
        client.transport.protocol.close()
        await gateway.settle()
        assert not client.transport.closing
        gateway.release()
        await gateway.settle()
        assert client.read() == (200, kind.again(1).expected(1))
        assert client.transport.closing

    run(front, test)


@fast_fronts
def test_a_client_that_does_not_read_gets_its_known_replies_one_by_one(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        orders = [kind.again(number) for number in range(5)]
        answered = len(client.replies())
        client.transport.protocol.pause_writing()
        client.transport.send(b"".join(each.packed() for each in orders))
        for _ in range(30):
            gateway.workers[0].turn()
            await asyncio.sleep(0)
        assert len(client.replies()) == answered + 1
        client.complete += orders
        client.transport.protocol.resume_writing()
        await gateway.settle()
        assert [answer_of(each) for each in client.replies()[answered:]] == [each.expected(1) for each in orders]

    run(front, test)


@fast_fronts
def test_a_known_head_is_judged_by_the_host_names_of_each_listener(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        client, kind = gateway.connect(), Order((1, 1), "f")
        await warm(gateway, client, kind)
        strict = HttpListener(
            gateway.app.serve,
            is_local=True,
            hosts=listener_policy("127.0.0.1", "elsewhere", (), is_loopback=True),
            context=gateway.context,
        )
        gateway.listener, usual = strict, gateway.listener
        guarded = gateway.connect()
        gateway.listener = usual
        foreign = kind.packed().replace(b"Host: localhost", b"Host: evil.example")
        for number in range(3):
            client.send(foreign, kind)
            await gateway.settle()
            assert client.replies()[-1].status == 200
            guarded.send(foreign, kind)
            await gateway.settle()
            assert guarded.replies()[-1].status not in (200, 500), number
            if guarded.transport.closing:
                break
        strict.pre_shutdown()
        await strict.shutdown(0.1)

    run(front, test)


@fast_fronts
def test_counters_and_histogram_have_each_known_request_once(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        gateway.serve("rows", "1")
        clients = [gateway.connect() for _ in range(10)]
        kinds = [Order((number, 1), "f" if number % 2 else "rows", form=FORMS[number % 4]) for number in range(10)]
        for client, kind in zip(clients, kinds, strict=True):
            await warm(gateway, client, kind)
        for number in range(7):
            for client, kind in zip(clients, kinds, strict=True):
                client.ask(replace(kind.again(number), rows=3 if kind.model == "rows" and number > 3 else 1))
            await gateway.settle()
        totals, counts = gateway.counters.totals(), gateway.histogram_counts()
        assert totals["f", "1"]["success"] == totals["f", "1"]["inference_count"] == counts["f", "1"] == 55
        assert totals["rows", "1"]["success"] == counts["rows", "1"] == 55
        assert totals["rows", "1"]["inference_count"] == 55 + 2 * 3 * 5
        assert totals["f", "1"]["exec_count"] == totals["f", "1"]["queue_ns"] == 55

    run(front, test)


@fast_fronts
def test_a_frame_of_known_and_unknown_requests_is_answered_in_one_frame(front: str) -> None:
    async def test(gateway: ScriptedGateway) -> None:
        gateway.serve("f", "1")
        known = Order((1, 1), "f")
        clients = [gateway.connect() for _ in range(20)]
        await warm(gateway, clients[0], known)
        for round_ in range(4):
            orders = [
                replace(known, tag=(round_, number), id="" if number % 2 else f"new{round_}.{number}", noise=number)
                for number in range(len(clients))
            ]
            for client, order in zip(clients, orders, strict=True):
                client.ask(order)
            await gateway.settle()
            assert [each.read() for each in clients] == [(200, each.expected(1)) for each in orders]

    run(front, test)
