"""What a controller remembers of workers that have left: over loads and unloads none of its tables grows."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from pathlib import Path
from typing import Any, Final

import pytest

from controller_double import ControllerHarness
from mmsup.supervisor.observability.event_log import EVENTS_KEPT

pytestmark = pytest.mark.slow

CYCLES: Final = 8
BOUNDED: Final = {"EventLog._events": EVENTS_KEPT}
"""What keeps the last of something, and how many."""


def table_sizes(root: object) -> Counter[str]:
    """The number of elements of all tables of mmsup's objects that can be reached from one, by class and attribute."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    left: list[Any] = [root]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict | list | tuple | set | frozenset | deque):
            left += gc.get_referents(each)
        elif type(each).__module__.startswith("mmsup."):
            names = [*getattr(each, "__dict__", ()), *getattr(type(each), "__slots__", ())]
            for name in names:
                value = getattr(each, name, None)
                left.append(value)
                if isinstance(value, dict | list | set | deque):
                    found[f"{type(each).__name__}.{name}"] += len(value)
    return found


def test_no_table_of_the_controller_grows_over_loads_and_unloads(tmp_path: Path) -> None:
    async def cycles(harness: ControllerHarness) -> Counter[str]:
        handle = harness.controller.api.handlers.handle
        for _ in range(CYCLES):
            await handle("load", {"name": "bert"}, lambda _: None)
            harness.controller.models.footprints.observe(next(iter(harness.controller.models.model_set.instances())))
            await handle("unload", {"name": "bert"}, lambda _: None)
            await harness.until(lambda: not list(harness.controller.models.model_set.instances()))
        harness.controller.resources.memory_sampler.start()
        return table_sizes(harness.controller)

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",), control_mode="explicit") as harness:
            before = await cycles(harness)
            after = await cycles(harness)
            grown = {name: (before[name], after[name]) for name in after if after[name] > before[name]}
            assert not {name: each for name, each in grown.items() if each[1] > BOUNDED.get(name, 0)}
            assert "EventLog._events" in grown, "something was counted"

    asyncio.run(run())
