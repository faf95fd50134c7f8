"""The standby gateway: started when there is time, sent nothing, and in the seat of the first one that exits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from controller_double import Child, ControllerHarness
from harness.server import eventually
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
from mmsup.supervisor.gateways import gateway_checks, standby
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayRecords
from mmsup.supervisor.linux.idle_group import IdleGroup

Play = Callable[[ControllerHarness], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "STEADY_S", 0.0)
    monkeypatch.setattr(gateway_checks, "CHECK_INTERVAL_S", 0.01)


def run_in_harness(home: Path, play: Play, **options: Any) -> None:  # of Settings
    async def run() -> None:
        async with ControllerHarness(home, **({"spare_gateway": True} | options)) as harness:
            await harness.until(lambda: harness.events("ready"))
            await play(harness)

    asyncio.run(run())


def living(harness: ControllerHarness) -> list[Child]:
    return [each for each in harness.keeper.children.values() if each.token.startswith("gate") and not each.exited]


def serving(harness: ControllerHarness) -> list[Child]:
    return [each for each in living(harness) if each.received_of(ConfigureGateway)]


def standbys(harness: ControllerHarness) -> list[Child]:
    return [each for each in living(harness) if not each.received_of(ConfigureGateway)]


async def next_standby(harness: ControllerHarness) -> Child:
    """The next one that is there, come up as a good one does."""
    await harness.until(lambda: standbys(harness))
    (found,) = standbys(harness)
    found.page.set_activity(Activity.STANDBY, 1 << 62)  # a beat from the future is never stale
    return found


async def followed(harness: ControllerHarness, *old: Child) -> None:
    """They are dead, and all places serve."""
    await harness.until(lambda: all(each.exited for each in old) and harness.controller.gateways.pool.are_up())


async def leaves(harness: ControllerHarness, child: Child) -> None:
    """A gateway is retired, and has no connections."""
    await harness.until(lambda: child.received_of(RetireGateway))
    child.process.terminate()


async def ask(harness: ControllerHarness, verb: str) -> Any:  # JSON
    return await harness.controller.api.handlers.handle(verb, {}, lambda _: None)


def test_a_standby_is_sent_nothing_and_is_counted_apart(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found = await next_standby(harness)
        (worker,) = harness.keeper.workers()
        worker.process.kill()
        await harness.until(lambda: len(harness.events("worker_ready")) == 2)
        await harness.controller.gateways.barriers.wait_until_applied(1.0)
        assert found.received == []
        status = await ask(harness, "status")
        assert status["spare_gateways"] == {"wanted": 1, "ready": 1}
        assert [each["pid"] for each in status["gateways"]] == [serving(harness)[0].process.pid]
        rows = [each for each in (await ask(harness, "ps"))["processes"] if each["role"] == "gateway"]
        assert {each["pid"]: each["state"] for each in rows} == {
            serving(harness)[0].process.pid: "ready",
            found.process.pid: "spare",
        }
        assert {each["pid"]: each["seat"] for each in rows} == {
            serving(harness)[0].process.pid: 0,
            found.process.pid: None,
        }

    run_in_harness(tmp_path, play)


def test_it_takes_the_seat_of_one_that_exits_and_another_standby_follows(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, first = await next_standby(harness), serving(harness)[0]
        first.process.kill()
        await followed(harness, first)
        assert serving(harness) == [found]
        assert [each.name for each in found.received_of(Route)] == ["good"]
        assert len(found.received_of(LinkWorker)) == 1
        (configure,) = found.received_of(ConfigureGateway)
        assert configure == replace(first.received_of(ConfigureGateway)[0], generation=found.life[1]), (
            "it counts in another table"
        )
        assert isinstance(found.received[0], ConfigureGateway), "it was sent something before its configuration"
        (row,) = [each for each in (await ask(harness, "ps"))["processes"] if each["pid"] == found.process.pid]
        assert (row["id"], row["seat"]) == (found.life[0], 0)
        other = await next_standby(harness)
        assert other.life[0] != found.life[0], "two living gateways have one number"
        assert [each["gateway"] for each in harness.events("gateway_exit")] == [first.life[0]]

    run_in_harness(tmp_path, play)


def idle_group(harness: ControllerHarness, folder: Path) -> IdleGroup:
    """Let standbys start in an idle group from now on, with files as the kernel makes them."""
    for name in ("idle", "core"):
        (folder / name).mkdir()
        (folder / name / "cgroup.procs").write_text("")
    group = harness.controller.gateways.context.idle = IdleGroup(folder / "idle", folder / "core")
    return group


async def idle_standby(harness: ControllerHarness, group: IdleGroup) -> Child:
    """The standby that follows the present one: it has joined the group, and is not up yet."""
    await harness.until(lambda: standbys(harness))
    (old,) = standbys(harness)
    old.process.kill()
    await harness.until(lambda: [each for each in standbys(harness) if each is not old])
    (found,) = standbys(harness)
    assert found.spawn.procs_files == (group.procs_file,)
    await asyncio.to_thread((group.folder / "cgroup.procs").write_text, f"{found.process.pid}\n")
    return found


async def several_checks(harness: ControllerHarness) -> None:
    """Wait until the standby was looked at three more times."""
    standby, checks, enough = harness.controller.gateways.pool.standby, list[None](), asyncio.Event()
    check = standby.check_start

    def counted() -> None:
        check()
        checks.append(None)
        if len(checks) >= 3:
            enough.set()

    with mock.patch.object(standby, "check_start", counted):
        async with asyncio.timeout(30):
            await enough.wait()


def test_it_starts_in_the_idle_group_and_leaves_it_when_it_is_up(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        group = idle_group(harness, tmp_path)
        home = group.home / "cgroup.procs"
        found = await idle_standby(harness, group)
        await several_checks(harness)
        assert not home.read_text(), "it competes before it is up"
        found.page.set_activity(Activity.STANDBY, 1 << 62)
        await asyncio.to_thread(eventually, home.read_text, "it has left the group")
        assert home.read_text() == str(found.process.pid)
        assert not serving(harness)[0].spawn.procs_files, "a gateway that is awaited starts behind others"

    run_in_harness(tmp_path, play)


def test_one_that_gets_a_seat_before_it_is_up_leaves_the_idle_group_first(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        group = idle_group(harness, tmp_path)
        found, first = await idle_standby(harness, group), serving(harness)[0]
        first.process.kill()
        await harness.until(lambda: found.received_of(ConfigureGateway))
        assert (group.home / "cgroup.procs").read_text() == str(found.process.pid)

    run_in_harness(tmp_path, play)


@pytest.mark.slow
def test_a_seat_that_loses_its_process_again_and_again_has_its_backoff(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        for _ in range(2):
            await next_standby(harness)
            (old,) = serving(harness)
            old.process.kill()
            await followed(harness, old)
        first, second = (each["next_delay_s"] for each in harness.events("gateway_exit"))
        assert first == 0
        assert second > 0

    run_in_harness(tmp_path, play)


def test_of_two_that_exit_one_gets_the_standby_and_the_other_a_new_process(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, old = await next_standby(harness), serving(harness)
        for each in old:
            each.process.kill()
        await followed(harness, *old)
        assert found in serving(harness)
        assert len(serving(harness)) == 2
        assert {each.received_of(ConfigureGateway)[0].seat for each in serving(harness)} == {0, 1}, (
            "tables of their own"
        )
        assert len({each.life[0] for each in serving(harness)}) == 2

    run_in_harness(tmp_path, play, gateways=2)


def test_a_standby_that_is_killed_is_followed_by_another_and_no_one_else_notices(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, before = await next_standby(harness), serving(harness)
        received = list(before[0].received)
        found.process.kill()
        await harness.until(lambda: harness.events("spare_exit"))
        await next_standby(harness)
        assert serving(harness) == before
        assert before[0].received == received
        assert not harness.events("gateway_exit")

    run_in_harness(tmp_path, play)


def test_a_standby_whose_loop_stands_is_killed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found = await next_standby(harness)
        found.page.set_activity(Activity.STANDBY, 1)
        await harness.until(lambda: found.exited)
        assert "its loop had not come round" in harness.events("spare_exit")[-1]["text"]

    run_in_harness(tmp_path, play)


def test_the_next_controller_knows_the_standby(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, first = await next_standby(harness), serving(harness)[0]
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        assert found.received == []
        assert (await ask(harness, "status"))["spare_gateways"]["ready"] == 1
        first.process.kill()
        await followed(harness, first)
        assert serving(harness) == [found]

    run_in_harness(tmp_path, play)


def test_a_standby_that_is_still_starting_is_not_killed_by_the_next_controller(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: standbys(harness))
        (found,) = standbys(harness)
        found.page.set_activity(Activity.STARTING, 1 << 62)
        started = harness.controller.gateways.pool.standby.gateway
        assert started is not None
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        adopted = harness.controller.gateways.pool.standby.gateway
        assert adopted is not None
        assert adopted.started_s == started.spawned_s
        harness.controller.gateways.checks._check()
        assert not [each for each in harness.keeper.sent_of(SignalChild) if each.token == found.token]
        assert found.exited is None

    run_in_harness(tmp_path, play)


def test_the_next_controller_gives_it_a_seat_that_became_free_meanwhile(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, first = await next_standby(harness), serving(harness)[0]
        await harness.kill_controller()
        first.process.kill()
        await harness.keeper.deaths.wait()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        assert serving(harness) == [found]

    run_in_harness(tmp_path, play)


def test_a_standby_that_died_while_there_was_no_controller_is_followed_by_another(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found = await next_standby(harness)
        await harness.kill_controller()
        found.process.kill()
        await harness.keeper.deaths.wait()
        await harness.start_controller()
        assert await next_standby(harness) is not found
        assert len(serving(harness)) == 1

    run_in_harness(tmp_path, play)


def test_a_controller_that_dies_before_configuring_it_leaves_it_its_seat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, first = await next_standby(harness), serving(harness)[0]
        with monkeypatch.context() as dying:
            dying.setattr(GatewayProcess, "configure", lambda _: None)
            first.process.kill()
            await harness.until(lambda: any("the standby" in each["text"] for each in harness.events("gateway_spawn")))
            await harness.kill_controller()
        (saved,) = harness.saved().all_of(GatewayRecords)
        assert [each.role for each in saved.gateways] == ["serving"]
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        assert serving(harness) == [found]

    run_in_harness(tmp_path, play)


def test_a_stop_waits_for_no_answer_of_a_standby(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found = await next_standby(harness)
        harness.from_keeper(TerminateRequested())
        await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))
        assert harness.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(0)]
        assert found.received == []
        assert found.exited is not None
        assert found.exited.signal == signal.SIGTERM
        assert not standbys(harness)

    run_in_harness(tmp_path, play)


async def into_upgrade(harness: ControllerHarness) -> None:
    """From the question to the brain that follows gateways and workers."""
    work: Any = harness.controller.api.handlers.handle("upgrade", {"ticket": "t"}, lambda _: None)  # a coroutine
    asked = asyncio.get_running_loop().create_task(work)
    await harness.until(lambda: harness.keeper.sent_of(RequestUpgrade))
    harness.from_keeper(StepDown(replaces_keeper=False))
    await harness.until(harness.controller.context.finished.is_set)
    asked.cancel()
    await harness.kill_controller()
    await harness.start_controller()


def test_an_upgrade_kills_the_standby_of_the_old_code_once_the_new_serves(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        found = await next_standby(harness)
        await into_upgrade(harness)
        await harness.until(lambda: found.exited)
        said = [each for each in harness.keeper.sent if isinstance(each, Spawn | SignalChild)]
        words = [type(each) for each in said if each.token.startswith("gateway")]
        assert words[:4] == [
            Spawn,
            Spawn,
            Spawn,
            SignalChild,
        ], "it was ended before a successor served"
        assert await next_standby(harness) is not found
        assert found.received == []

    run_in_harness(tmp_path, play)


def test_a_gateway_that_exits_while_its_successor_comes_up_leaves_its_seat_to_the_standby(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(harness: ControllerHarness) -> None:
        found, (old,) = await next_standby(harness), serving(harness)
        held: list[Spawn] = []
        spawn = harness.keeper._spawn
        monkeypatch.setattr(harness.keeper, "_spawn", held.append)
        await into_upgrade(harness)
        await harness.until(lambda: held)
        old.process.kill()
        await followed(harness, old)
        assert found in serving(harness)
        monkeypatch.setattr(harness.keeper, "_spawn", spawn)
        (successor,) = held
        spawn(successor)
        await leaves(harness, harness.keeper.child(successor.token))
        await leaves(harness, found)  # it is of the old code too
        await harness.until(lambda: harness.events("upgraded"))

    run_in_harness(tmp_path, play)


def test_without_the_setting_there_is_none(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        first = serving(harness)[0]
        first.process.kill()
        await followed(harness, first)
        harness.controller.gateways.checks._check()
        assert harness.controller.gateways.pool.standby.gateway is None
        assert (await ask(harness, "status"))["spare_gateways"] == {"wanted": 0, "ready": 0}

    run_in_harness(tmp_path, play, spare_gateway=False)
