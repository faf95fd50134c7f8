"""The hot upgrade under load: every process is followed by another one, and no caller notices."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.build import write_fault_model, write_identity_onnx
from harness.bystander import Bystander
from harness.edition import Installed
from harness.house import Victim
from harness.invariants import assert_clean, assert_gone, differences, family, kinds, settled, snapshot
from harness.server import Http, Server, eventually, serving

pytestmark = pytest.mark.slow
MODELS = ("one", "two")
PACE_S = 0.2
"""Between two calls of a caller who is not in a hurry: its connection is idle most of the time."""


class Caller(Bystander):
    """Calls without a pause on one connection; whoever answers, the answers are right."""

    def assert_unharmed(self) -> None:
        """No failure; other processes are what an upgrade is for."""
        assert not self.failures, f"{len(self.failures)} of {self.sent} calls failed: {self.failures[:3]}"


class Visitor(threading.Thread):
    """Calls now and then, on one connection that is kept, or on a new one each time."""

    def __init__(self, server: Server, model: str, *, keeps: bool) -> None:
        super().__init__(name=f"visitor of {model}")
        self._address = server.address()
        self._model = model
        self._keeps = keeps
        self._stop_it = threading.Event()
        self.sent = 0
        self.failures: list[str] = []

    def run(self) -> None:
        http = Http(self._address)
        while not self._stop_it.wait(PACE_S if self._keeps else 0.01):
            self.sent += 1
            try:
                status, reply = http.infer(self._model, x=("FP32", [2], [float(self.sent), 2.0]))
                if status != 200 or reply["outputs"][0]["data"] != [float(self.sent), 2.0]:
                    self.failures.append(f"{status} {reply}")
            except OSError as error:
                self.failures.append(repr(error))
            if not self._keeps:
                http.close()
        http.close()

    def __enter__(self) -> Visitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join(30)
        assert self.sent
        assert not self.failures, f"{len(self.failures)} of {self.sent}: {self.failures[:3]}"


@contextlib.contextmanager
def traffic(server: Server) -> Iterator[None]:
    """Callers of every kind on both models; none of them sees a failure."""
    with contextlib.ExitStack() as callers:
        for model in MODELS:
            callers.enter_context(Caller(server, model))
            callers.enter_context(Visitor(server, model, keeps=True))
            callers.enter_context(Visitor(server, model, keeps=False))
        yield


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    home = tmp_path / "models"
    for name in MODELS:
        write_identity_onnx(home, name)
    return home


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path / "installed")


@contextlib.contextmanager
def running(repository: Path, installed: Installed | None = None, *flags: str) -> Iterator[Server]:
    more: dict[str, Any] = {"python": installed.python} if installed else {}
    with serving(repository, *flags, **more) as server:
        http = Http(server.address())
        for name in MODELS:
            assert http.infer(name, x=("FP32", [4], [1.0, 2.0, 3.0, 4.0]))[0] == 200
        http.close()
        yield server


def upgrade(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    """`mmsup ctl upgrade`, as an operator types it."""
    argv = [server.python, "-m", "mmsup.supervisor.cli", "ctl", "--runtime-dir", str(server.runtime_dir), "upgrade"]
    return subprocess.run([*argv, *options], capture_output=True, text=True, check=False, timeout=120)


def processes(server: Server) -> dict[str, int]:
    """Role to pid, of all that serve."""
    return {f"{each['role']} {each['model']} {place}": each["pid"] for place, each in enumerate(_rows(server))}


def _rows(server: Server) -> list[dict[str, Any]]:
    rows = [each for each in server.ctl("ps")["processes"] if each["state"] != "draining"]
    return sorted(rows, key=lambda each: (each["role"], each["model"]))


def assert_followed(before: dict[str, int], after: dict[str, int]) -> None:
    """The keeper is the same process, all others are not."""
    assert before.keys() == after.keys()
    same = [role for role in before if before[role] == after[role]]
    assert [role.split()[0] for role in same] == ["keeper"]


@pytest.mark.fault("F30")
def test_an_upgrade_under_load_costs_no_request(repository: Path, installed: Installed) -> None:
    with running(repository, installed, "--gateways", "2") as server:
        before, old = settled(server), processes(server)
        with traffic(server):
            installed.change("__init__.py", '"0.1.0"', '"0.2.0"')
            installed.change("supervisor/premises.py", "keeper_renewed", "keeper_of_another_version")
            done = upgrade(server)
            assert done.returncode == 0, done.stderr + server.log()
        assert server.status()["version"] == "0.2.0"
        assert '"keeper_of_another_version"' in server.log()
        assert_followed(old, processes(server))
        assert "the keeper becomes the new program" in done.stderr
        assert done.stdout.startswith("upgraded after ")
        assert not server.events("worker_exit")
        assert not server.events("gateway_exit")
        assert_clean(before, server)
        everyone = family(server)
        assert server.stop() == 0
        assert_gone(server, everyone)
