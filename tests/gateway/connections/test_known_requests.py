"""Requests that are recognised as known ones are served as all others: one thing after the other that may befall them.

Every test runs on fast connections that use known requests and on those that do not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from harness.scripted_worker import LIES, Do
from scripted_gateway import Order, ScriptedClient, ScriptedGateway, scripted_gateway

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
        for number in range(3):
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
