"""When a server with several models is announced as ready, and whom a load that is stuck holds back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller_double import Child, ControllerHarness, add_model
from mmsup.ipc.messages.gateway_control import LinkWorker, Route, Synced
from mmsup.ipc.messages.keeper_control import NotifySystemd, ShutdownFinished
from mmsup.ipc.messages.worker_control import LoadFailed

pytestmark = pytest.mark.slow

READY = NotifySystemd("READY=1")


def run_in_harness(home: Path, play: Callable[[ControllerHarness], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, ("good", "stuck"), **options) as harness:

            def script(child: Child) -> None:
                instance = harness.controller.models.model_set.instance(child.life[0])
                if instance is not None and instance.revision.spec.name == "good":
                    child.serve()

            harness.keeper.script = script
            await harness.until(lambda: harness.state("good") == "ready")
            await harness.until(harness.controller.gateways.pool.are_up)
            await play(harness)

    asyncio.run(run())


def is_ready(harness: ControllerHarness) -> bool:
    synced = harness.gateway().received_of(Synced)
    return bool(synced) and synced[-1].ready


def test_a_stuck_load_holds_the_server_back_for_the_start_up_grace_and_no_longer(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: is_ready(harness))
        assert harness.state("stuck") in ("starting", "loading")
        (event,) = harness.events("ready")
        assert "still loading: stuck" in event["text"]
        assert READY in harness.keeper.sent

    run_in_harness(tmp_path, play, startup_grace_s=0.5)


def test_within_the_start_up_grace_a_server_that_still_loads_gets_no_requests(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.gateway().received_of(Synced))
        assert not is_ready(harness)
        assert READY not in harness.keeper.sent
        harness.keeper.workers()[-1].serve()
        await harness.until(lambda: is_ready(harness))
        assert READY in harness.keeper.sent

    run_in_harness(tmp_path, play, startup_grace_s=3600.0)


def test_a_strict_server_waits_for_every_model_whatever_the_grace(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.gateway().received_of(Synced))
        assert not is_ready(harness)
        harness.keeper.workers()[-1].serve()
        await harness.until(lambda: is_ready(harness))

    run_in_harness(tmp_path, play, startup_grace_s=0.0, strict_readiness=True)


def test_a_model_that_fails_after_the_grace_ends_a_server_with_exit_on_error_all_the_same(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: is_ready(harness))
        assert not harness.keeper.sent_of(ShutdownFinished)
        stuck = harness.keeper.workers()[-1]
        stuck.send(LoadFailed("load_failed", "the artefact is broken"))
        stuck.process.kill()
        await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))

    run_in_harness(tmp_path, play, startup_grace_s=0.0, exit_on_error=True)


def test_a_model_is_first_ready_with_the_version_that_plain_requests_get(tmp_path: Path) -> None:
    async def run() -> None:
        folder = add_model(tmp_path, "m").parent
        add_model(tmp_path, "m", "3")
        (folder / "config.pbtxt").write_text("version_policy: { all { } }\n")
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ()) as harness:
            silent: dict[str, Child] = {}

            def script(child: Child) -> None:
                instance = harness.controller.models.model_set.instance(child.life[0])
                assert instance is not None
                silent[instance.revision.spec.version] = child

            def default() -> str:
                return str(harness.gateway().received_of(Route)[-1].default)

            harness.keeper.script = script
            await harness.until(lambda: len(silent) == 2)
            await harness.until(harness.controller.gateways.pool.are_up)
            silent["1"].serve()
            await harness.until(lambda: len(harness.events("worker_ready")) == 1)
            await harness.until(lambda: harness.gateway().received_of(LinkWorker))
            assert (default(), is_ready(harness)) == ("3", False)
            silent["3"].serve()
            await harness.until(lambda: is_ready(harness))
            assert default() == "3"
            silent["3"].process.kill()
            await harness.until(lambda: len(harness.events("worker_spawn")) == 3)
            assert default() == "3", "a restart sends nobody to an older version"

    asyncio.run(run())
