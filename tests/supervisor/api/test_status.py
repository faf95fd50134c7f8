"""The views of a server with many models: what each model costs."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from controller_double import ControllerHarness, add_model

pytestmark = pytest.mark.slow
MODELS = 30
CALLS_PER_MODEL = 30
"""Of functions of Python, beside what an index costs in any case."""
FILE_CALLS = {"open", "stat", "lstat", "listdir", "scandir", "readlink", "access"}


class Calls:
    """Counts the calls of functions during a block, and names those that look at files."""

    def __init__(self) -> None:
        self.count = 0
        self.of_files: Counter[str] = Counter()

    def __enter__(self) -> Calls:
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _on_event(self, _frame: FrameType, event: str, of: Any) -> None:  # a built-in function, with `c_call`
        self.count += event == "call"
        if event == "c_call" and of.__name__ in FILE_CALLS:
            self.of_files[of.__name__] += 1


@pytest.mark.parametrize("mode", ["on-demand", "explicit"], ids=["asleep", "not loaded"])
def test_the_index_costs_little_for_each_model_and_looks_at_no_file(tmp_path: Path, mode: str) -> None:
    for number in range(MODELS):
        add_model(tmp_path, f"m{number}")

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, (), control_mode=mode) as harness:
            await harness.until(lambda: harness.controller.models.waker.is_open)
            with Calls() as calls:
                rows = await harness.controller.api.handlers.handle("index", {}, lambda _: None)
            assert len(rows) == MODELS
            assert calls.count < CALLS_PER_MODEL * MODELS, calls.count
            assert not calls.of_files

    asyncio.run(run())
