"""The memory of workers, sampled while they live."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from controller_double import ControllerHarness
from mmsup.supervisor.instances import memory_sampler

pytestmark = pytest.mark.slow


def test_without_a_control_group_the_history_is_of_the_resident_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_sampler, "EVERY_S", 0.01)

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",)) as house:
            await house.until(lambda: house.state("bert") == "ready")
            (instance,) = house.controller.models.model_set.instances()
            history = instance.worker.memory_history if instance.worker else None
            assert history is not None
            change = house.controller.context.change_signal
            add = history.add

            def note(now_s: float, memory_bytes: int, device_bytes: int) -> None:
                add(now_s, memory_bytes, device_bytes)
                change.set()

            monkeypatch.setattr(instance.worker, "memory_history", SimpleNamespace(add=note))
            await house.until(lambda: len(history.rows(0.0)) >= 5)
            assert all(memory > 0 for _, memory, _ in history.rows(0.0))

    asyncio.run(run())
