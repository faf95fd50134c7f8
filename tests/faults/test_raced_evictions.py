"""Models are put to sleep while requests to them come without a pause: each is answered rightly, by the worker that
goes or by the next one, and a model that stays loaded notices nothing."""

from __future__ import annotations

import threading
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

import pytest

from engines.build import write_python
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec

CODE = """import os

import numpy as np


class Model:
    def infer(self, inputs):
        return {{"y": inputs["x"] * {factor}, "pid": np.array([os.getpid()])}}
"""
RACED, BYSTANDER = ("one", "two"), "pinned"
FACTORS = {"one": 2.0, "two": 3.0, BYSTANDER: 5.0}
CALLERS = 2
"""Of each model."""


class Callers:
    """Clients that call each its model without a pause during the block, and look at every answer."""

    def __init__(self, server: Server) -> None:
        self.faults: list[str] = []
        self.pids: dict[str, list[int]] = {name: [] for name in FACTORS}
        """Of the workers that have answered, in the order of their first answers."""
        self._server = server
        self._stop = threading.Event()
        names = [*RACED * CALLERS, BYSTANDER]
        self._threads = [threading.Thread(target=self._run, args=each) for each in enumerate(names)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, name: str) -> None:
        http = self._server.http()
        value = float(number)
        while not self._stop.is_set():
            value += len(self._threads)
            try:
                status, answer = http.infer(name, x=("FP32", [1], [value]))
            except (OSError, HTTPException) as error:
                self.faults.append(f"{name}: {error!r}")
                http.close()
                continue
            if status != 200:
                self.faults.append(f"{name}: {status} {answer}")
                continue
            outputs = {each["name"]: each["data"][0] for each in answer["outputs"]}
            if outputs["y"] != value * FACTORS[name]:
                self.faults.append(f"{name}: {outputs} to {value}")
            if outputs["pid"] not in self.pids[name]:
                self.pids[name].append(outputs["pid"])
        http.close()


def write_models(repository: Path) -> None:
    inputs = (TensorSpec("x", "FP32", (1,)),)
    outputs = (TensorSpec("y", "FP32", (1,)), TensorSpec("pid", "INT64", (1,)))
    for name, factor in FACTORS.items():
        settings = {"pin": True, "load": "start"} if name == BYSTANDER else {}
        write_python(repository, name, CODE.format(factor=factor), inputs, outputs, settings=settings)


@pytest.mark.slow
@pytest.mark.parametrize("evictions", [4, pytest.param(100, marks=pytest.mark.long)])
def test_requests_that_race_evictions_are_all_answered(evictions: int, tmp_path: Path) -> None:
    write_models(tmp_path)
    with serving(tmp_path, "--model-control-mode", "on-demand") as server:
        with Callers(server) as callers:
            for number in range(evictions):
                name, lives = RACED[number % 2], number // 2 + 1
                eventually(lambda: len(callers.pids[name]) >= lives, f"life {lives} of {name}: {callers.faults[:3]}")  # noqa: B023 - called here
                server.ctl("sleep", name=name)
            for name in RACED:
                eventually(lambda: len(callers.pids[name]) > evictions // 2, f"{name} is back: {callers.faults[:3]}")  # noqa: B023 - as above
        assert callers.faults == []
        assert callers.pids[BYSTANDER] == [server.pid(BYSTANDER)]
        assert {name: len(callers.pids[name]) for name in RACED} == dict.fromkeys(RACED, evictions // 2 + 1)
        server.stop()
