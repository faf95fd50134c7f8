"""The upgrade as brains see it, among played children: its stages, who may ask, what outlives a brain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness, add_model, fail_to_load
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.gateway_control import RetireGateway
from mmsup.ipc.messages.keeper_control import RequestUpgrade, StepDown, UpgradeRefused
from mmsup.supervisor.controller import upgrade
from mmsup.supervisor.controller.upgrade import failure_text, result_of_upgrade
from mmsup.supervisor.state.checkpoint import UpgradeRecord, from_text

NOTE = UpgradeRecord("t", False, 1.0, "done", 1, False, 3, {}, "", 2.5, 1)  # noqa: FBT003 - a record


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (NOTE, ""),
        (replace(NOTE, failure="no"), "not upgraded: no"),
        (replace(NOTE, kept={"worker 7 of m/1": "why"}), "upgraded, but not all: worker 7 of m/1 stays: why"),
        (replace(NOTE, failure="no", kept={"keeper": "why"}), "not upgraded: no; keeper stays: why"),
    ],
)
def test_what_is_not_as_it_was_asked_for_is_named(note: UpgradeRecord, said: str) -> None:
    assert failure_text(note) == said
    if said:
        with pytest.raises(MmsupError, match="upgraded"):
            result_of_upgrade(note)
    else:
        assert result_of_upgrade(note) == {"keeper": "same code", "followed": 3, "seconds": 2.5}


def in_house(home: Path, play: Callable[[ControllerHarness], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home) as house:
            await house.until(lambda: house.state("good") == "ready" and house.controller.gateways.are_up())
            await play(house)

    asyncio.run(run())


def asking(house: ControllerHarness, said: list[str], ticket: str = "t") -> asyncio.Task[Any]:
    def hear(line: dict[str, Any]) -> None:  # JSON
        said.append(line["progress"])
        house.controller.change_signal.set()

    work: Any = house.controller.handlers.handle("upgrade", {"ticket": ticket}, hear)  # a coroutine
    return asyncio.get_running_loop().create_task(work)


async def change_brains(house: ControllerHarness, said: list[str]) -> asyncio.Task[Any]:
    """From the question to the next brain, which is asked again."""
    first = asking(house, said)
    await house.until(lambda: house.keeper.sent_of(RequestUpgrade))
    house.controller.on_keeper_message(StepDown(replaces_keeper=False), [])
    await house.until(house.controller.finished.is_set)
    first.cancel()
    await house.kill_controller()
    await house.start_controller()
    return asking(house, said)


def finish_retired(house: ControllerHarness) -> None:
    """A gateway that was told to retire leaves by itself."""
    for child in house.keeper.children.values():
        if child.received_of(RetireGateway) and child.exited is None:
            child.process.terminate()


@pytest.mark.slow
def test_every_process_is_followed_and_what_came_of_it_is_there_for_who_asks_again(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        said: list[str] = []
        old = {each.token for each in house.keeper.children.values()}
        asked = await change_brains(house, said)
        await house.until(lambda: any(each.received_of(RetireGateway) for each in house.keeper.children.values()))
        finish_retired(house)
        result = await asked
        assert result["followed"] == 2
        living = {each.token for each in house.keeper.children.values() if each.exited is None}
        assert len(living) == 2
        assert not living & old
        assert "trying the code on disk" in said
        assert "another brain takes over" in said
        assert "the upgrade goes on" in said, "who asks the next brain does not know that it was heard"
        late: list[str] = []
        assert await asking(house, late) == result
        assert late == []
        assert [each["event"] for each in house.events() if each["event"].startswith("upgrade")] == [
            "upgrade_begun",
            "upgrade_begun",
            "upgraded",
        ]

    in_house(tmp_path, play)


@pytest.mark.slow
def test_code_that_the_keeper_refuses_changes_nothing(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        asked = asking(house, [])
        await house.until(lambda: house.keeper.sent_of(RequestUpgrade))
        house.controller.on_keeper_message(UpgradeRefused("SyntaxError: no"), [])
        with pytest.raises(MmsupError, match="not upgraded: SyntaxError: no"):
            await asked
        assert not house.controller.finished.is_set()
        assert len(house.keeper.children) == 2
        asked = asking(house, [], "another")
        await house.until(lambda: len(house.keeper.sent_of(RequestUpgrade)) == 2)
        with pytest.raises(MmsupError, match="under way already"):
            await asking(house, [], "a third")
        house.controller.terminate()
        with pytest.raises(MmsupError, match="the server is draining"):
            await asked
        with pytest.raises(MmsupError, match="the server is draining"):
            await asking(house, [], "a fourth")

    in_house(tmp_path, play)


@pytest.mark.slow
def test_brains_that_fall_over_an_upgrade_give_it_up(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        asked = asking(house, [])
        await house.until(lambda: house.keeper.sent_of(RequestUpgrade))
        asked.cancel()
        for _ in range(upgrade.MAX_CONTROLLERS):
            await house.kill_controller()
            await house.start_controller()
            await house.until(house.controller.gateways.are_up)
        with pytest.raises(MmsupError, match="brains have fallen over it"):
            await asking(house, [])
        memory = from_text(house.keeper.remembered)
        assert memory is not None
        assert memory.upgrade is not None
        assert memory.upgrade.stage == "done"

    in_house(tmp_path, play)


@pytest.mark.slow
def test_a_load_under_way_ends_before_the_brain_leaves(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = lambda _: None
        load = asyncio.get_running_loop().create_task(house.controller.loader.load("good"))
        await house.until(lambda: len(house.keeper.workers()) == 2)
        said: list[str] = []
        asked = asking(house, said)
        await house.until(lambda: "waiting for loads under way" in said)
        assert not house.keeper.sent_of(RequestUpgrade)
        fail_to_load(house.keeper.workers()[-1])
        with pytest.raises(MmsupError, match="broken"):
            await load
        await house.until(lambda: house.keeper.sent_of(RequestUpgrade))
        asked.cancel()

    in_house(tmp_path, play)


@pytest.mark.slow
def test_as_many_workers_are_followed_at_a_time_as_may_load(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        for name in ("b", "c", "d"):
            add_model(tmp_path, name)
            await house.controller.loader.load(name)
        serve, held = house.keeper.script, list[Child]()
        house.keeper.script = held.append
        said: list[str] = []
        asked = await change_brains(house, said)
        await house.until(lambda: any(each.received_of(RetireGateway) for each in house.keeper.children.values()))
        finish_retired(house)
        await house.until(lambda: len(held) == 2)
        assert len([each for each in said if each.startswith("renewing")]) == 2
        house.keeper.script = serve
        for each in held:
            serve(each)
        assert (await asked)["followed"] == 5

    in_house(tmp_path, play)
