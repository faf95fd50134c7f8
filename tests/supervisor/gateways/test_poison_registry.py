"""The controller's poison lists: found by one gateway, sent to all, saved for the next controller."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller_double import Child, ControllerHarness
from mmsup.ipc.messages.gateway_control import AddPoisonEntries, PoisonSuspected, RemovePoisonEntry, SuspectCleared
from mmsup.ipc.poison_policy import BLOCKED_LIMIT, EXPIRY_S, PoisonEntry
from mmsup.supervisor.gateways.poison_requests import PoisonRecord

pytestmark = pytest.mark.slow
X, Y = b"x" * 16, b"y" * 16


def run_in_harness(
    home: Path, play: Callable[[ControllerHarness], Awaitable[None]], **options: Any
) -> None:  # of Settings
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ("m", "other"), **options) as harness:
            await harness.until(lambda: harness.state("m") == harness.state("other") == "ready")
            await harness.until(harness.controller.gateways.pool.are_up)
            await play(harness)

    asyncio.run(run())


def case(print_: bytes = X, deaths: int = 1, *, blocked: bool = False) -> PoisonEntry:
    return PoisonEntry(print_, "1", deaths, blocked=blocked, until_s=time.monotonic() + EXPIRY_S)


def suspected(harness: ControllerHarness, *cases: PoisonEntry, alone: bool = False, name: str = "m") -> PoisonSuspected:
    model = harness.controller.models.model_set.model(name)
    assert model is not None
    assert model.active is not None
    (instance,) = model.active.instances()
    return PoisonSuspected(*instance.worker_id, name, cases, alone)


def gateways(harness: ControllerHarness) -> list[Child]:
    found = [each for each in harness.keeper.children.values() if each.token.startswith("gate") and not each.exited]
    return sorted(found, key=lambda each: each.token)


def known_to(gateway: Child) -> dict[bytes, bool]:
    """What a gateway has been sent: whether each is blocked."""
    known: dict[bytes, bool] = {}
    for each in gateway.received:
        if isinstance(each, AddPoisonEntries):
            known |= {case.fingerprint: case.blocked for case in each.entries}
        elif isinstance(each, RemovePoisonEntry):
            known = (
                {}
                if not each.fingerprint
                else {key: blocked for key, blocked in known.items() if key != each.fingerprint}
            )
    return known


def knows(gateway: Child) -> bool:
    return X in known_to(gateway)


async def ask(harness: ControllerHarness, verb: str, **arguments: Any) -> Any:  # JSON
    return await harness.controller.api.handlers.handle(verb, arguments, lambda _: None)


def test_what_one_gateway_found_is_sent_to_all_and_to_those_that_come_later(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        one, other = gateways(harness)
        one.send(suspected(harness, case(X), case(Y)))
        await harness.until(lambda: known_to(one) == known_to(other) == {X: False, Y: False})
        one.send(SuspectCleared("m", Y))
        await harness.until(lambda: known_to(one) == known_to(other) == {X: False})
        one.send(suspected(harness, case(X, 2, blocked=True), alone=True))
        await harness.until(lambda: known_to(one) == known_to(other) == {X: True})
        (event,) = harness.events("request_quarantined", "m")
        assert (event["fingerprint"], event["deaths"], event["version"]) == (X.hex(), 2, "1")
        other.process.kill()
        await harness.until(lambda: len(gateways(harness)) == 2 and gateways(harness)[1] is not other)
        await harness.until(lambda: known_to(gateways(harness)[1]) == {X: True})

    run_in_harness(tmp_path, play, gateways=2)


def test_two_deaths_that_two_gateways_saw_count_together(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        one, other = gateways(harness)
        for gateway in (one, other):  # the second does not know of the first
            gateway.send(suspected(harness, case(X), alone=True))
            await harness.until(functools.partial(knows, gateway))
        await harness.until(lambda: known_to(one) == known_to(other) == {X: True})

    run_in_harness(tmp_path, play, gateways=2)


def test_the_list_is_shown_and_can_be_cleared_for_one_model_or_all(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        gateway = harness.gateway()
        gateway.send(suspected(harness, case(X, 2, blocked=True), case(Y)))
        gateway.send(suspected(harness, case(b"z" * 16, 3, blocked=True), name="other"))
        await harness.until(lambda: len(known_to(gateway)) == 3)
        rows = (await ask(harness, "quarantine"))["requests"]
        assert [(each["model"], each["state"], each["deaths"]) for each in rows] == [
            ("m", "blocked", 2),
            ("other", "blocked", 3),
            ("m", "suspect", 1),
        ]
        assert set(rows[0]) == {"model", "version", "fingerprint", "state", "deaths", "left_s"}
        assert 0 < rows[0]["left_s"] <= EXPIRY_S
        assert len((await ask(harness, "quarantine", model="other"))["requests"]) == 1
        assert await ask(harness, "quarantine_clear", model="m") == {"model": "m", "cleared": 1}
        assert [each["model"] for each in (await ask(harness, "quarantine"))["requests"]] == ["other"]
        assert await ask(harness, "quarantine_clear") == {"model": "", "cleared": 1}
        assert await ask(harness, "quarantine") == {"requests": []}
        await harness.until(lambda: {each.name for each in gateway.received_of(RemovePoisonEntry)} == {"m", "other"})
        assert len(harness.events("quarantine_cleared")) == 2

    run_in_harness(tmp_path, play)


def test_the_next_controller_knows_what_is_blocked(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.gateway().send(suspected(harness, case(X, 2, blocked=True), case(Y)))
        await harness.until(lambda: known_to(harness.gateway()) == {X: True, Y: False})
        before = (await ask(harness, "quarantine"))["requests"][0]
        await harness.kill_controller()
        harness.gateway().received.clear()
        await harness.start_controller()
        await harness.until(lambda: known_to(harness.gateway()) == {X: True})
        (after,) = (await ask(harness, "quarantine"))["requests"]
        assert {**after, "left_s": 0} == {**before, "left_s": 0}
        assert after["left_s"] <= before["left_s"]

    run_in_harness(tmp_path, play)


def test_another_revision_drops_the_list_and_the_same_content_keeps_it(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.gateway().send(suspected(harness, case(X, 2, blocked=True)))
        await harness.until(lambda: harness.events("request_quarantined"))
        late = suspected(harness, case(Y))
        await ask(harness, "load", name="m")
        await ask(harness, "unload", name="m")
        await ask(harness, "load", name="m")
        assert len((await ask(harness, "quarantine"))["requests"]) == 1
        (tmp_path / "repo" / "m" / "1" / "model.py").write_text("class Model:\n    mended = True\n")
        await ask(harness, "load", name="m")
        await harness.until(lambda: harness.events("quarantine_cleared", "m"))
        harness.gateway().send(late)
        harness.gateway().send(suspected(harness, case(b"z" * 16)))
        await harness.until(lambda: known_to(harness.gateway()).keys() == {b"z" * 16})

    run_in_harness(tmp_path, play)


def test_what_is_saved_is_bounded(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        gateways = harness.controller.gateways
        for number in range(2 * BLOCKED_LIMIT):
            message = suspected(harness, case(number.to_bytes(16, "big"), 2, blocked=True))
            gateways.events.on_message(gateways.pool.seats[0], message)
        (record,) = harness.saved().all_of(PoisonRecord)
        assert (record.name, len(record.entries)) == ("m", BLOCKED_LIMIT)

    run_in_harness(tmp_path, play)
