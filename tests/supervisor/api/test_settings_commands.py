"""Settings that clients change: they reach every gateway, and outlive a controller."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from controller_double import ControllerHarness
from mmsup.ipc.errors import CallerError
from mmsup.ipc.log_settings import LogSettings

pytestmark = pytest.mark.slow


def test_log_settings_reach_every_gateway_and_outlive_the_controller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.NOTSET, "mmsup")  # and back afterwards

    async def play() -> None:
        harness = ControllerHarness(tmp_path, ("good",), log_verbose=1)
        harness.output = str(tmp_path / "console")
        async with asyncio.timeout(60), harness:
            await harness.until(lambda: harness.state("good") == "ready")
            gateway = harness.gateway()
            assert gateway.received_of(LogSettings) == [LogSettings(verbose_level=1)]
            handle = harness.controller.api.handlers.handle
            shown = await handle("log_settings", {"settings": {"log_info": False}}, print)
            assert (shown["log_info"], shown["log_verbose_level"], shown["log_file"]) == (False, 1, "")
            await handle("trace_settings", {"name": "good", "settings": {"trace_rate": "5"}}, print)
            changed = LogSettings(info=False, verbose_level=1)
            await harness.until(lambda: gateway.received_of(LogSettings)[-1] == changed)
            await harness.kill_controller()
            await harness.start_controller()
            await harness.until(lambda: gateway.received_of(LogSettings)[-2:] == [changed, changed])
            handle = harness.controller.api.handlers.handle
            assert (await handle("log_settings", {}, print))["log_info"] is False
            assert (await handle("trace_settings", {"name": "good"}, print))["trace_rate"] == "5"
            assert (await handle("trace_settings", {}, print))["trace_rate"] == "1000"
            gateway.process.kill()
            await harness.until(lambda: harness.controller.gateways.pool.are_up() and gateway.exited)
            assert harness.gateway().received_of(LogSettings) == [changed]
            with pytest.raises(CallerError, match="unknown model"):
                await handle("trace_settings", {"name": "none"}, print)
            with pytest.raises(CallerError, match="must be an object"):
                await handle("log_settings", {"settings": [1]}, print)

    asyncio.run(play())
    lines = [json.loads(each) for each in (tmp_path / "console").read_text().splitlines()]
    levels = [each["level"] for each in lines]
    assert "info" in levels
    taken_over = [each["event"] for each in lines].index("brain_exit")
    assert levels[taken_over] == "warning"
    assert "info" not in levels[taken_over:], "the next controller has forgotten what was set"
    assert "command log_settings" in caplog.text
