"""The brain's list of requests that ended workers: heard from one gateway, told to all, kept for the next brain."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, House
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.poison_policy import BLOCKED_LIMIT, EXPIRY_S, Case
from mmsup.supervisor.gateways.poison_requests import REMEMBERED_LIMIT

pytestmark = pytest.mark.slow
X, Y = b"x" * 16, b"y" * 16


def in_house(home: Path, play: Callable[[House], Awaitable[None]], **options: Any) -> None:  # of Settings
    async def run() -> None:
        async with asyncio.timeout(60), House(home, ("m", "other"), **options) as house:
            await house.until(lambda: house.state("m") == house.state("other") == "ready")
            await house.until(house.brain.gateways.are_up)
            await play(house)

    asyncio.run(run())


def case(print_: bytes = X, deaths: int = 1, *, blocked: bool = False) -> Case:
    return Case(print_, "1", deaths, blocked=blocked, until_s=time.monotonic() + EXPIRY_S)


def suspected(house: House, *cases: Case, alone: bool = False, name: str = "m") -> gateway_control.Suspected:
    model = house.brain.fleet.model(name)
    assert model is not None
    assert model.current is not None
    (instance,) = model.current.instances()
    return gateway_control.Suspected(*instance.key, name, cases, alone)


def gateways(house: House) -> list[Child]:
    found = [each for each in house.keeper.children.values() if each.token.startswith("gate") and not each.exited]
    return sorted(found, key=lambda each: each.token)


def told(gateway: Child) -> dict[bytes, bool]:
    """What a gateway has been told: whether each is blocked."""
    known: dict[bytes, bool] = {}
    for each in gateway.heard:
        if isinstance(each, gateway_control.Quarantine):
            known |= {case.fingerprint: case.blocked for case in each.cases}
        elif isinstance(each, gateway_control.Pardon):
            known = (
                {} if not each.fingerprint else {key: word for key, word in known.items() if key != each.fingerprint}
            )
    return known


def knows(gateway: Child) -> bool:
    return X in told(gateway)


async def ask(house: House, verb: str, **arguments: Any) -> Any:  # JSON
    return await house.brain.verbs.do(verb, arguments, lambda _: None)


def test_what_one_gateway_found_all_are_told_and_those_that_come_later(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        one, other = gateways(house)
        one.say(suspected(house, case(X), case(Y)))
        await house.until(lambda: told(one) == told(other) == {X: False, Y: False})
        one.say(gateway_control.Lived("m", Y))
        await house.until(lambda: told(one) == told(other) == {X: False})
        one.say(suspected(house, case(X, 2, blocked=True), alone=True))
        await house.until(lambda: told(one) == told(other) == {X: True})
        (event,) = house.events("request_quarantined", "m")
        assert (event["fingerprint"], event["deaths"], event["version"]) == (X.hex(), 2, "1")
        other.process.kill()
        await house.until(lambda: len(gateways(house)) == 2 and gateways(house)[1] is not other)
        await house.until(lambda: told(gateways(house)[1]) == {X: True})

    in_house(tmp_path, play, gateways=2)


def test_two_deaths_that_two_gateways_saw_count_together(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        one, other = gateways(house)
        for gateway in (one, other):  # the second had not heard of the first
            gateway.say(suspected(house, case(X), alone=True))
            await house.until(functools.partial(knows, gateway))
        await house.until(lambda: told(one) == told(other) == {X: True})

    in_house(tmp_path, play, gateways=2)


def test_the_list_is_shown_and_can_be_cleared_for_one_model_or_all(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        gateway = house.gateway()
        gateway.say(suspected(house, case(X, 2, blocked=True), case(Y)))
        gateway.say(suspected(house, case(b"z" * 16, 3, blocked=True), name="other"))
        await house.until(lambda: len(told(gateway)) == 3)
        rows = (await ask(house, "quarantine"))["requests"]
        assert [(each["model"], each["state"], each["deaths"]) for each in rows] == [
            ("m", "blocked", 2),
            ("other", "blocked", 3),
            ("m", "suspect", 1),
        ]
        assert set(rows[0]) == {"model", "version", "fingerprint", "state", "deaths", "left_s"}
        assert 0 < rows[0]["left_s"] <= EXPIRY_S
        assert len((await ask(house, "quarantine", model="other"))["requests"]) == 1
        assert await ask(house, "quarantine_clear", model="m") == {"model": "m", "cleared": 1}
        assert [each["model"] for each in (await ask(house, "quarantine"))["requests"]] == ["other"]
        assert await ask(house, "quarantine_clear") == {"model": "", "cleared": 1}
        assert await ask(house, "quarantine") == {"requests": []}
        await house.until(lambda: {each.name for each in gateway.of(gateway_control.Pardon)} == {"m", "other"})
        assert len(house.events("quarantine_cleared")) == 2

    in_house(tmp_path, play)


def test_the_next_brain_knows_what_is_blocked(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.gateway().say(suspected(house, case(X, 2, blocked=True), case(Y)))
        await house.until(lambda: told(house.gateway()) == {X: True, Y: False})
        before = (await ask(house, "quarantine"))["requests"][0]
        await house.kill_brain()
        house.gateway().heard.clear()
        await house.new_brain()
        await house.until(lambda: told(house.gateway()) == {X: True})
        (after,) = (await ask(house, "quarantine"))["requests"]
        assert {**after, "left_s": 0} == {**before, "left_s": 0}
        assert after["left_s"] <= before["left_s"]

    in_house(tmp_path, play)


def test_another_content_is_another_list_and_the_same_content_keeps_it(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.gateway().say(suspected(house, case(X, 2, blocked=True)))
        await house.until(lambda: house.events("request_quarantined"))
        late = suspected(house, case(Y))
        await ask(house, "load", name="m")
        await ask(house, "unload", name="m")
        await ask(house, "load", name="m")
        assert len((await ask(house, "quarantine"))["requests"]) == 1
        (tmp_path / "repo" / "m" / "1" / "model.py").write_text("class Model:\n    mended = True\n")
        await ask(house, "load", name="m")
        await house.until(lambda: house.events("quarantine_cleared", "m"))
        house.gateway().say(late)
        house.gateway().say(suspected(house, case(b"z" * 16)))
        await house.until(lambda: told(house.gateway()).keys() == {b"z" * 16})

    in_house(tmp_path, play)


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        for number in range(2 * BLOCKED_LIMIT):
            house.brain.suspected(suspected(house, case(number.to_bytes(16, "big"), 2, blocked=True)))
        ((name, _, cases),) = [(each.name, each.mark, each.cases) for each in house.brain._quarantine.notes()]
        assert (name, len(cases)) == ("m", BLOCKED_LIMIT)
        assert BLOCKED_LIMIT <= REMEMBERED_LIMIT

    in_house(tmp_path, play)
