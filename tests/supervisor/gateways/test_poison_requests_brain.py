"""The brain's list of requests that ended workers: heard from one gateway, told to all, kept for the next brain."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import BLOCKED_LIMIT, EXPIRY_S, PoisonEntry
from mmsup.supervisor.gateways.poison_requests import CHECKPOINT_LIMIT

pytestmark = pytest.mark.slow
X, Y = b"x" * 16, b"y" * 16


def in_house(home: Path, play: Callable[[ControllerHarness], Awaitable[None]], **options: Any) -> None:  # of Settings
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ("m", "other"), **options) as house:
            await house.until(lambda: house.state("m") == house.state("other") == "ready")
            await house.until(house.controller.gateways.are_up)
            await play(house)

    asyncio.run(run())


def case(print_: bytes = X, deaths: int = 1, *, blocked: bool = False) -> PoisonEntry:
    return PoisonEntry(print_, "1", deaths, blocked=blocked, until_s=time.monotonic() + EXPIRY_S)


def suspected(house: ControllerHarness, *cases: PoisonEntry, alone: bool = False, name: str = "m") -> PoisonSuspected:
    model = house.controller.model_set.model(name)
    assert model is not None
    assert model.active is not None
    (instance,) = model.active.instances()
    return PoisonSuspected(*instance.worker_id, name, cases, alone)


def gateways(house: ControllerHarness) -> list[Child]:
    found = [each for each in house.keeper.children.values() if each.token.startswith("gate") and not each.exited]
    return sorted(found, key=lambda each: each.token)


def told(gateway: Child) -> dict[bytes, bool]:
    """What a gateway has been told: whether each is blocked."""
    known: dict[bytes, bool] = {}
    for each in gateway.received:
        if isinstance(each, AddPoisonEntries):
            known |= {case.fingerprint: case.blocked for case in each.entries}
        elif isinstance(each, RemovePoisonEntry):
            known = (
                {} if not each.fingerprint else {key: word for key, word in known.items() if key != each.fingerprint}
            )
    return known


def knows(gateway: Child) -> bool:
    return X in told(gateway)


async def ask(house: ControllerHarness, verb: str, **arguments: Any) -> Any:  # JSON
    return await house.controller.handlers.handle(verb, arguments, lambda _: None)


def test_what_one_gateway_found_all_are_told_and_those_that_come_later(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        one, other = gateways(house)
        one.send(suspected(house, case(X), case(Y)))
        await house.until(lambda: told(one) == told(other) == {X: False, Y: False})
        one.send(SuspectCleared("m", Y))
        await house.until(lambda: told(one) == told(other) == {X: False})
        one.send(suspected(house, case(X, 2, blocked=True), alone=True))
        await house.until(lambda: told(one) == told(other) == {X: True})
        (event,) = house.events("request_quarantined", "m")
        assert (event["fingerprint"], event["deaths"], event["version"]) == (X.hex(), 2, "1")
        other.process.kill()
        await house.until(lambda: len(gateways(house)) == 2 and gateways(house)[1] is not other)
        await house.until(lambda: told(gateways(house)[1]) == {X: True})

    in_house(tmp_path, play, gateways=2)


def test_two_deaths_that_two_gateways_saw_count_together(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        one, other = gateways(house)
        for gateway in (one, other):  # the second had not heard of the first
            gateway.send(suspected(house, case(X), alone=True))
            await house.until(functools.partial(knows, gateway))
        await house.until(lambda: told(one) == told(other) == {X: True})

    in_house(tmp_path, play, gateways=2)


def test_the_list_is_shown_and_can_be_cleared_for_one_model_or_all(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        gateway = house.gateway()
        gateway.send(suspected(house, case(X, 2, blocked=True), case(Y)))
        gateway.send(suspected(house, case(b"z" * 16, 3, blocked=True), name="other"))
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
        await house.until(lambda: {each.name for each in gateway.received_of(RemovePoisonEntry)} == {"m", "other"})
        assert len(house.events("quarantine_cleared")) == 2

    in_house(tmp_path, play)


def test_the_next_brain_knows_what_is_blocked(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.gateway().send(suspected(house, case(X, 2, blocked=True), case(Y)))
        await house.until(lambda: told(house.gateway()) == {X: True, Y: False})
        before = (await ask(house, "quarantine"))["requests"][0]
        await house.kill_controller()
        house.gateway().received.clear()
        await house.start_controller()
        await house.until(lambda: told(house.gateway()) == {X: True})
        (after,) = (await ask(house, "quarantine"))["requests"]
        assert {**after, "left_s": 0} == {**before, "left_s": 0}
        assert after["left_s"] <= before["left_s"]

    in_house(tmp_path, play)


def test_another_content_is_another_list_and_the_same_content_keeps_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.gateway().send(suspected(house, case(X, 2, blocked=True)))
        await house.until(lambda: house.events("request_quarantined"))
        late = suspected(house, case(Y))
        await ask(house, "load", name="m")
        await ask(house, "unload", name="m")
        await ask(house, "load", name="m")
        assert len((await ask(house, "quarantine"))["requests"]) == 1
        (tmp_path / "repo" / "m" / "1" / "model.py").write_text("class Model:\n    mended = True\n")
        await ask(house, "load", name="m")
        await house.until(lambda: house.events("quarantine_cleared", "m"))
        house.gateway().send(late)
        house.gateway().send(suspected(house, case(b"z" * 16)))
        await house.until(lambda: told(house.gateway()).keys() == {b"z" * 16})

    in_house(tmp_path, play)


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        for number in range(2 * BLOCKED_LIMIT):
            house.controller.suspected(suspected(house, case(number.to_bytes(16, "big"), 2, blocked=True)))
        ((name, _, cases),) = [
            (each.name, each.revision_id, each.cases) for each in house.controller._poison_requests.records()
        ]
        assert (name, len(cases)) == ("m", BLOCKED_LIMIT)
        assert BLOCKED_LIMIT <= CHECKPOINT_LIMIT

    in_house(tmp_path, play)
