"""The memory of workers, looked at while they live."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from brain_double import ControllerHarness
from mmsup.supervisor.instances import memory_sampler

pytestmark = pytest.mark.slow


def test_a_worker_has_a_curve_of_its_resident_set_where_there_is_no_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_sampler, "EVERY_S", 0.01)

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",)) as house:
            await house.until(lambda: house.state("bert") == "ready")
            (instance,) = house.controller.model_set.instances()
            curve = instance.worker.memory_history if instance.worker else None
            assert curve is not None
            looks = house.controller.change_signal
            add = curve.add

            def note(now_s: float, memory_bytes: int, device_bytes: int) -> None:
                add(now_s, memory_bytes, device_bytes)
                looks.set()

            monkeypatch.setattr(instance.worker, "curve", SimpleNamespace(add=note))
            await house.until(lambda: len(curve.rows(0.0)) >= 5)
            assert all(memory > 0 for _, memory, _ in curve.rows(0.0))

    asyncio.run(run())
