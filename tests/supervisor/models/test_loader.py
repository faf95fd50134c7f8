"""Loads and unloads of one model that come in the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller_double import ControllerHarness, add_model
from mmsup.ipc.errors import CallerError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["explicit", "on-demand"])
def test_an_unload_before_the_load_has_begun_leaves_the_model_unloaded(tmp_path: Path, mode: str) -> None:
    add_model(tmp_path, "m")

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, (), control_mode=mode) as harness:
            models = harness.controller.models
            await harness.until(lambda: models.waker.is_open)
            load = asyncio.create_task(
                models.waker.wake_for_request("m") if mode == "on-demand" else models.loader.load("m")
            )
            await asyncio.sleep(0)
            assert "m" in models.loader.pending
            await models.loader.unload("m")
            with pytest.raises(CallerError, match="it was unloaded meanwhile"):
                await load
            model = models.model_set.models["m"]
            assert not model.wanted
            assert not list(model.instances())
            await models.loader.load("m")
            assert harness.state("m") == "ready"

    asyncio.run(run())


def test_a_load_after_an_unload_does_not_share_the_fate_of_the_one_before(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, (), control_mode="explicit") as harness:
            loader = harness.controller.models.loader
            await loader.load("m")
            await loader.unload("m")
            waits = asyncio.create_task(loader.load("m"))
            await harness.until(lambda: harness.controller.models.model_set.models["m"].is_waiting_for_exit)
            unload = asyncio.create_task(loader.unload("m"))
            again = asyncio.create_task(loader.load("m"))  # begins when the unload has, before that has been answered
            with pytest.raises(CallerError, match="it was unloaded meanwhile"):
                await waits
            await unload
            await again
            assert harness.state("m") == "ready"

    asyncio.run(run())
