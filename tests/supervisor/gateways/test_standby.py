"""The spare gateway: started when there is time, told nothing, and in the place of the first one that ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.gateway_control import ConfigureGateway, LinkWorker, RetireGateway, Route
from mmsup.ipc.messages.keeper_control import (
    RequestUpgrade,
    ShutdownFinished,
    SignalChild,
    Spawn,
    StepDown,
    TerminateRequested,
)
from mmsup.supervisor.gateways import pool, standby
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.state.checkpoint import from_text

Play = Callable[[ControllerHarness], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "STEADY_S", 0.0)
    monkeypatch.setattr(pool, "CHECK_INTERVAL_S", 0.01)


def in_house(home: Path, play: Play, **options: Any) -> None:  # of Settings
    async def run() -> None:
        async with ControllerHarness(home, **({"spare_gateway": True} | options)) as house:
            await house.until(lambda: house.events("ready"))
            await play(house)

    asyncio.run(run())


def living(house: ControllerHarness) -> list[Child]:
    return [each for each in house.keeper.children.values() if each.token.startswith("gate") and not each.exited]


def serving(house: ControllerHarness) -> list[Child]:
    return [each for each in living(house) if each.received_of(ConfigureGateway)]


def spares(house: ControllerHarness) -> list[Child]:
    return [each for each in living(house) if not each.received_of(ConfigureGateway)]


async def next_spare(house: ControllerHarness) -> Child:
    """The next one that is there, come up as a good one does."""
    await house.until(lambda: spares(house))
    (found,) = spares(house)
    found.page.set_activity(Activity.STANDBY, 1 << 62)  # a beat from the future is never stale
    return found


async def followed(house: ControllerHarness, *old: Child) -> None:
    """They are dead, and all places serve."""
    await house.until(lambda: all(each.exited for each in old) and house.controller.gateways.are_up())


async def leaves(house: ControllerHarness, child: Child) -> None:
    """A gateway is told to retire, and has no connections."""
    await house.until(lambda: child.received_of(RetireGateway))
    child.process.terminate()


async def ask(house: ControllerHarness, verb: str) -> Any:  # JSON
    return await house.controller.handlers.handle(verb, {}, lambda _: None)


def test_a_spare_hears_nothing_and_is_counted_apart(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found = await next_spare(house)
        (worker,) = house.keeper.workers()
        worker.process.kill()
        await house.until(lambda: len(house.events("worker_ready")) == 2)
        await house.controller.gateways.wait_until_applied(1.0)
        assert found.received == []
        told = await ask(house, "status")
        assert told["spare_gateways"] == {"wanted": 1, "ready": 1}
        assert [each["pid"] for each in told["gateways"]] == [serving(house)[0].process.pid]
        rows = [each for each in (await ask(house, "ps"))["processes"] if each["role"] == "gateway"]
        assert {each["pid"]: each["state"] for each in rows} == {
            serving(house)[0].process.pid: "ready",
            found.process.pid: "spare",
        }

    in_house(tmp_path, play)


def test_it_takes_the_place_of_one_that_ends_and_another_one_follows_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found, first = await next_spare(house), serving(house)[0]
        first.process.kill()
        await followed(house, first)
        assert serving(house) == [found]
        assert [each.name for each in found.received_of(Route)] == ["good"]
        assert len(found.received_of(LinkWorker)) == 1
        (configure,) = found.received_of(ConfigureGateway)
        assert configure == replace(first.received_of(ConfigureGateway)[0], generation=found.life[1]), (
            "it counts in another table"
        )
        assert isinstance(found.received[0], ConfigureGateway), "it was told something before it knew what it is"
        other = await next_spare(house)
        assert other.life[0] != found.life[0], "two living gateways have one number"
        assert [each["gateway"] for each in house.events("gateway_exit")] == [first.life[0]]

    in_house(tmp_path, play)


@pytest.mark.slow
def test_a_place_that_loses_its_process_again_and_again_waits_as_ever(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        for _ in range(2):
            await next_spare(house)
            (old,) = serving(house)
            old.process.kill()
            await followed(house, old)
        first, second = (each["next_delay_s"] for each in house.events("gateway_exit"))
        assert first == 0
        assert second > 0

    in_house(tmp_path, play)


def test_of_two_that_end_one_gets_the_spare_and_the_other_a_new_process(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found, old = await next_spare(house), serving(house)
        for each in old:
            each.process.kill()
        await followed(house, *old)
        assert found in serving(house)
        assert len(serving(house)) == 2
        assert {each.received_of(ConfigureGateway)[0].seat for each in serving(house)} == {0, 1}, "tables of their own"
        assert len({each.life[0] for each in serving(house)}) == 2

    in_house(tmp_path, play, gateways=2)


def test_a_spare_that_is_killed_is_followed_by_another_and_nobody_else_notices(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found, before = await next_spare(house), serving(house)
        heard = list(before[0].received)
        found.process.kill()
        await house.until(lambda: house.events("spare_exit"))
        await next_spare(house)
        assert serving(house) == before
        assert before[0].received == heard
        assert not house.events("gateway_exit")

    in_house(tmp_path, play)


def test_a_spare_whose_loop_stands_is_killed(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found = await next_spare(house)
        found.page.set_activity(Activity.STANDBY, 1)
        await house.until(lambda: found.exited)
        assert "its loop had not come round" in house.events("spare_exit")[-1]["text"]

    in_house(tmp_path, play)


def test_the_next_brain_knows_the_spare(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found, first = await next_spare(house), serving(house)[0]
        await house.kill_controller()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        assert found.received == []
        assert (await ask(house, "status"))["spare_gateways"]["ready"] == 1
        first.process.kill()
        await followed(house, first)
        assert serving(house) == [found]

    in_house(tmp_path, play)


def test_the_next_brain_gives_it_a_place_that_became_free_meanwhile(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found, first = await next_spare(house), serving(house)[0]
        await house.kill_controller()
        first.process.kill()
        await house.keeper.deaths.wait()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        assert serving(house) == [found]

    in_house(tmp_path, play)


def test_a_spare_that_died_while_no_brain_was_there_is_followed_by_another(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found = await next_spare(house)
        await house.kill_controller()
        found.process.kill()
        await house.keeper.deaths.wait()
        await house.start_controller()
        assert await next_spare(house) is not found
        assert len(serving(house)) == 1

    in_house(tmp_path, play)


def test_a_brain_that_dies_before_the_first_word_leaves_it_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: ControllerHarness) -> None:
        found, first = await next_spare(house), serving(house)[0]
        with monkeypatch.context() as dying:
            dying.setattr(GatewayProcess, "configure", lambda _: None)
            first.process.kill()
            await house.until(lambda: any("the spare" in each["text"] for each in house.events("gateway_spawn")))
            await house.kill_controller()
        memory = from_text(house.keeper.remembered)
        assert memory is not None
        assert [each.role for each in memory.gateways] == ["serves"]
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        assert serving(house) == [found]

    in_house(tmp_path, play)


def test_the_end_waits_for_no_word_of_a_spare(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found = await next_spare(house)
        house.controller.on_keeper_message(TerminateRequested(), [])
        await house.until(lambda: house.keeper.sent_of(ShutdownFinished))
        assert house.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(0)]
        assert found.received == []
        assert found.exited is not None
        assert found.exited.signal == signal.SIGTERM
        assert not spares(house)

    in_house(tmp_path, play)


async def into_upgrade(house: ControllerHarness) -> None:
    """From the question to the brain that follows gateways and workers."""
    work: Any = house.controller.handlers.handle("upgrade", {"ticket": "t"}, lambda _: None)  # a coroutine
    asked = asyncio.get_running_loop().create_task(work)
    await house.until(lambda: house.keeper.sent_of(RequestUpgrade))
    house.controller.on_keeper_message(StepDown(replaces_keeper=False), [])
    await house.until(house.controller.finished.is_set)
    asked.cancel()
    await house.kill_controller()
    await house.start_controller()


def test_an_upgrade_ends_the_spare_of_the_old_code_once_the_new_serves(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        found = await next_spare(house)
        await into_upgrade(house)
        await house.until(lambda: found.exited)
        said = [each for each in house.keeper.sent if isinstance(each, Spawn | SignalChild)]
        words = [type(each) for each in said if each.token.startswith("gateway")]
        assert words[:4] == [
            Spawn,
            Spawn,
            Spawn,
            SignalChild,
        ], "it was ended before a successor served"
        assert await next_spare(house) is not found
        assert found.received == []

    in_house(tmp_path, play)


def test_a_gateway_that_ends_while_its_successor_comes_up_leaves_its_place_to_the_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(house: ControllerHarness) -> None:
        found, (old,) = await next_spare(house), serving(house)
        held: list[Spawn] = []
        spawn = house.keeper._spawn
        monkeypatch.setattr(house.keeper, "_spawn", held.append)
        await into_upgrade(house)
        await house.until(lambda: held)
        old.process.kill()
        await followed(house, old)
        assert found in serving(house)
        monkeypatch.setattr(house.keeper, "_spawn", spawn)
        (successor,) = held
        spawn(successor)
        await leaves(house, house.keeper.child(successor.token))
        await leaves(house, found)  # it is of the old code too
        await house.until(lambda: house.events("upgraded"))

    in_house(tmp_path, play)


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        first = serving(house)[0]
        first.process.kill()
        await followed(house, first)
        house.controller.gateways._check()
        assert house.controller.gateways.standby.gateway is None
        assert (await ask(house, "status"))["spare_gateways"] == {"wanted": 0, "ready": 0}

    in_house(tmp_path, play, spare_gateway=False)
