"""The upgrade among played children: its stages, who may request it, what outlives a controller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller_double import Child, ControllerHarness, add_model, fail_to_load
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.gateway_control import RetireGateway
from mmsup.ipc.messages.keeper_control import RequestUpgrade, StepDown, UpgradeRefused
from mmsup.ipc.messages.worker_control import ModelOffloaded, OffloadModel
from mmsup.supervisor.capacity.moves import SleepTier
from mmsup.supervisor.controller import upgrade
from mmsup.supervisor.controller.upgrade_record import UpgradeRecord, failure_text, result_of_upgrade
from mmsup.supervisor.models.sleep_state import SleepReason

NOTE = UpgradeRecord("t", False, 1.0, 1, "done", False, 3, {}, "", 2.5, 1)  # noqa: FBT003 - a record


@pytest.mark.parametrize(
    ("note", "progress"),
    [
        (NOTE, ""),
        (replace(NOTE, failure="no"), "not upgraded: no"),
        (replace(NOTE, kept={"worker 7 of m/1": "why"}), "upgraded, but not all: worker 7 of m/1 stays: why"),
        (replace(NOTE, failure="no", kept={"keeper": "why"}), "not upgraded: no; keeper stays: why"),
    ],
)
def test_what_was_not_upgraded_is_named(note: UpgradeRecord, progress: str) -> None:
    assert failure_text(note) == progress
    if progress:
        with pytest.raises(MmsupError, match="upgraded"):
            result_of_upgrade(note)
    else:
        assert result_of_upgrade(note) == {"keeper": "same code", "followed": 3, "seconds": 2.5}


def run_in_harness(home: Path, play: Callable[[ControllerHarness], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home) as harness:
            await harness.until(lambda: harness.state("good") == "ready" and harness.controller.gateways.pool.are_up())
            await play(harness)

    asyncio.run(run())


def asking(harness: ControllerHarness, progress: list[str], ticket: str = "t") -> asyncio.Task[Any]:
    def note(line: dict[str, Any]) -> None:  # JSON
        progress.append(line["progress"])
        harness.controller.context.change_signal.set()

    work: Any = harness.controller.api.handlers.handle("upgrade", {"ticket": ticket}, note)  # a coroutine
    return asyncio.get_running_loop().create_task(work)


async def change_controllers(harness: ControllerHarness, progress: list[str]) -> asyncio.Task[Any]:
    """From the request to the next controller, which is asked again."""
    first = asking(harness, progress)
    await harness.until(lambda: harness.keeper.sent_of(RequestUpgrade))
    harness.from_keeper(StepDown(replaces_keeper=False))
    await harness.until(harness.controller.context.finished.is_set)
    first.cancel()
    await harness.kill_controller()
    await harness.start_controller()
    return asking(harness, progress)


def finish_retired(harness: ControllerHarness) -> None:
    """A gateway that was retired exits by itself."""
    for child in harness.keeper.children.values():
        if child.received_of(RetireGateway) and child.exited is None:
            child.process.terminate()


@pytest.mark.slow
def test_every_process_is_replaced_and_the_result_is_there_for_a_client_that_asks_again(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        progress: list[str] = []
        old = {each.token for each in harness.keeper.children.values()}
        asked = await change_controllers(harness, progress)
        await harness.until(lambda: any(each.received_of(RetireGateway) for each in harness.keeper.children.values()))
        finish_retired(harness)
        result = await asked
        assert result["followed"] == 2
        living = {each.token for each in harness.keeper.children.values() if each.exited is None}
        assert len(living) == 2
        assert not living & old
        assert "trying the code on disk" in progress
        assert "another controller takes over" in progress
        assert "the upgrade is under way" in progress, "a client that asks again does not know that it was understood"
        late: list[str] = []
        assert await asking(harness, late) == result
        assert late == []
        assert [each["event"] for each in harness.events() if each["event"].startswith("upgrade")] == [
            "upgrade_begun",
            "upgrade_begun",
            "upgraded",
        ]

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_an_upgrade_leaves_nothing_of_the_old_code_in_host_memory(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        model = harness.controller.models.model_set.models["good"]
        assert model.active is not None
        model.active.versions[0].can_offload = True  # as its worker would have said
        (worker,) = harness.keeper.workers()
        sleeper = harness.controller.models.sleeper
        assert sleeper.put_to_sleep(model, SleepReason.TTL, tier=SleepTier.HOST_MEMORY) == ""
        await harness.until(lambda: worker.received_of(OffloadModel))
        worker.send(ModelOffloaded(0.01, 0))
        await harness.until(lambda: all(str(each.state) == "offloaded" for each in model.instances()))
        asked = await change_controllers(harness, [])
        await harness.until(lambda: any(each.received_of(RetireGateway) for each in harness.keeper.children.values()))
        finish_retired(harness)
        await asked
        await harness.until(lambda: not harness.keeper.workers())
        assert harness.state("good") == "asleep"

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_code_that_the_keeper_refuses_changes_nothing(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        asked = asking(harness, [])
        await harness.until(lambda: harness.keeper.sent_of(RequestUpgrade))
        harness.from_keeper(UpgradeRefused("SyntaxError: no"))
        with pytest.raises(MmsupError, match="not upgraded: SyntaxError: no"):
            await asked
        assert not harness.controller.context.finished.is_set()
        assert len(harness.keeper.children) == 2
        asked = asking(harness, [], "another")
        await harness.until(lambda: len(harness.keeper.sent_of(RequestUpgrade)) == 2)
        with pytest.raises(MmsupError, match="under way already"):
            await asking(harness, [], "a third")
        harness.controller.terminate()
        with pytest.raises(MmsupError, match="the server is draining"):
            await asked
        with pytest.raises(MmsupError, match="the server is draining"):
            await asking(harness, [], "a fourth")

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_controllers_that_crash_at_an_upgrade_give_it_up(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        asked = asking(harness, [])
        await harness.until(lambda: harness.keeper.sent_of(RequestUpgrade))
        asked.cancel()
        for _ in range(upgrade.MAX_CONTROLLERS):
            await harness.kill_controller()
            await harness.start_controller()
            await harness.until(harness.controller.gateways.pool.are_up)
        with pytest.raises(MmsupError, match="controllers have crashed at it"):
            await asking(harness, [])
        (saved,) = harness.saved().all_of(UpgradeRecord)
        assert saved.stage == "done"

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_a_load_under_way_ends_before_the_controller_exits(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = lambda _: None
        load = asyncio.get_running_loop().create_task(harness.controller.models.loader.load("good"))
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        progress: list[str] = []
        asked = asking(harness, progress)
        await harness.until(lambda: "waiting for loads under way" in progress)
        assert not harness.keeper.sent_of(RequestUpgrade)
        fail_to_load(harness.keeper.workers()[-1])
        with pytest.raises(MmsupError, match="broken"):
            await load
        await harness.until(lambda: harness.keeper.sent_of(RequestUpgrade))
        asked.cancel()

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_as_many_workers_are_replaced_at_a_time_as_may_load(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        for name in ("b", "c", "d"):
            add_model(tmp_path, name)
            await harness.controller.models.loader.load(name)
        serve, held = harness.keeper.script, list[Child]()
        harness.keeper.script = held.append
        progress: list[str] = []
        asked = await change_controllers(harness, progress)
        await harness.until(lambda: any(each.received_of(RetireGateway) for each in harness.keeper.children.values()))
        finish_retired(harness)
        await harness.until(lambda: len(held) == 2)
        assert len([each for each in progress if each.startswith("replacing")]) == 2
        harness.keeper.script = serve
        for each in held:
            serve(each)
        assert (await asked)["followed"] == 5

    run_in_harness(tmp_path, play)
