"""What the commands say of an ensemble whose steps are asleep or stopped, and do with one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controller_double import ControllerHarness, add_model
from engines.ensemble_files import write_ensemble
from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import TensorSpec


def test_why_an_ensemble_does_not_serve_is_told_and_only_its_steps_sleep(tmp_path: Path) -> None:
    add_model(tmp_path, "step")
    one, two = (TensorSpec(name, "FP32", (1,)) for name in "xy")
    write_ensemble(tmp_path / "repo", "both", ("step", {"x": "x"}, {"y": "y"}), inputs=[one], outputs=[two])

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, (), control_mode="on-demand") as harness:
            await harness.until(lambda: harness.controller.models.waker.is_open)

            async def ask(command: str, name: str) -> Any:  # JSON
                return await harness.controller.api.handlers.handle(command, {"name": name}, lambda _: None)

            assert (await ask("why", "both"))["state"] == "ready"
            with pytest.raises(CallerError, match="put its steps to sleep") as refused:
                await ask("sleep", "both")
            assert (refused.value.code, refused.value.retryable) == ("conflict", False)
            await ask("unload", "step")
            told = await ask("why", "both")
            assert (told["state"], told["reason"]) == ("stopped", "step 'step' is stopped")
            assert "The model is stopped now: step 'step' is stopped." in told["sentences"]

    asyncio.run(run())
