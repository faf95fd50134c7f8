"""Which requests are recognised as known ones: those that differ in tensors, ids and trace contexts alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import uvloop

from scripted_gateway import Order, ScriptedClient, ScriptedGateway, known_count, scripted_gateway

TRACE = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b71692{:05}-01"


def run(test: Callable[[ScriptedGateway, ScriptedClient], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), scripted_gateway("known") as gateway:
            gateway.serve("f", "1")
            gateway.serve("pair", "1")
            await test(gateway, gateway.connect())
            await gateway.finish()

    uvloop.run(whole())


async def ask(gateway: ScriptedGateway, client: ScriptedClient, order: Order, *cuts: int) -> bool:
    """Whether a request, cut there, is served as a known one; its answer must be right."""
    before, data = known_count(gateway) or 0, order.packed()
    for begin, end in zip((0, *cuts), (*cuts, None), strict=True):
        client.send(data[begin:end], *([] if end else [order]))
        await asyncio.sleep(0)
    await gateway.settle()
    assert client.read() == (200, order.expected(1))
    return (known_count(gateway) or 0) > before


@pytest.mark.parametrize("form", ["binary", "json", "binary in", "binary out"])
@pytest.mark.parametrize("model", ["f", "pair"])
def test_the_third_of_a_kind_is_known_and_so_are_all_behind_it(model: str, form: str) -> None:
    async def test(gateway: ScriptedGateway, client: ScriptedClient) -> None:
        kind = Order((1, 0), model, form=form)
        assert [await ask(gateway, client, kind.again(number)) for number in range(5)] == [False, False, *[True] * 3]

    run(test)


@pytest.mark.parametrize("form", ["binary", "json"])
def test_a_request_whose_body_comes_later_than_its_head_is_known(form: str) -> None:
    async def test(gateway: ScriptedGateway, client: ScriptedClient) -> None:
        kind = Order((1, 0), "f", form=form)
        for number in range(4):
            head = kind.again(number).packed().index(b"\r\n\r\n") + 4
            is_known = await ask(gateway, client, kind.again(number), head, head + 10)
            assert is_known == (number > 1)

    run(test)


@pytest.mark.parametrize("form", ["binary", "json"])
def test_ids_of_one_length_and_trace_contexts_are_no_difference(form: str) -> None:
    async def test(gateway: ScriptedGateway, client: ScriptedClient) -> None:
        kind = Order((1, 0), "f", form=form)
        for number in range(6):
            lines = (f"X-Request-Id: {'r' * number or 's'}", TRACE.format(number))
            order = replace(kind.again(number), id=f"id-{number}", lines=lines)
            assert await ask(gateway, client, order) == (number > 1)
            last = client.replies()[-1]
            assert dict(last.headers)["X-Request-Id"] == lines[0].removeprefix("X-Request-Id: ")
            assert f'"id":"id-{number}"'.encode() in last.body
        assert not await ask(gateway, client, replace(kind.again(7), id="longer")), "its response has another length"

    run(test)


def test_an_id_that_the_parser_does_not_take_is_never_filled_in() -> None:
    """Of two members of one name parsers take the last."""

    async def test(gateway: ScriptedGateway, client: ScriptedClient) -> None:
        for number in range(4):
            order = replace(Order((1, 0), "f").again(number), id="one")
            data = order.packed()
            other = data.replace(b"1.1\r\n", b"1.1\r\nA: b\r\n").replace(b'"inputs"', b'"id":"two","inputs"', 1)
            grown = len(b'"id":"two",')
            body = other.index(b"\r\n\r\n") + 4
            head = other[:body].decode()
            for name in ("Inference-Header-Content-Length", "Content-Length"):
                size = int(head.split(f"\r\n{name}: ")[1].split("\r\n")[0])
                head = head.replace(f"\r\n{name}: {size}\r\n", f"\r\n{name}: {size + grown}\r\n")
            client.send(head.encode() + other[body:], order)
            await gateway.settle()
            assert b'"id":"two"' in client.replies()[-1].body
        assert known_count(gateway) == 0

    run(test)
