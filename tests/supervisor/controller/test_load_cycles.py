"""What a controller remembers of workers that have left: over loads and unloads none of its tables grows."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from controller_double import ControllerHarness
from harness.table_sizes import table_sizes

pytestmark = pytest.mark.slow

CYCLES: Final = 8
"""A table that keeps something of each worker has grown by so many."""


def test_no_table_of_the_controller_grows_over_loads_and_unloads(tmp_path: Path) -> None:
    async def cycles(harness: ControllerHarness) -> Counter[str]:
        handle = harness.controller.api.handlers.handle
        for _ in range(CYCLES):
            await handle("load", {"name": "bert"}, lambda _: None)
            harness.controller.models.footprints.observe(next(iter(harness.controller.models.model_set.instances())))
            await handle("unload", {"name": "bert"}, lambda _: None)
            await harness.until(lambda: not list(harness.controller.models.model_set.instances()))
        harness.controller.resources.memory.sampler.start()
        return table_sizes(harness.controller)

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",), control_mode="explicit") as harness:
            before = await cycles(harness)
            after = await cycles(harness)
            grown = {name: after[name] - before[name] for name in after if after[name] >= before[name] + CYCLES}
            assert grown.pop("EventLog._events", 0), "something was counted"
            assert not grown

    asyncio.run(run())
