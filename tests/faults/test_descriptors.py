"""A server with more models than its limit of open files holds serves as many as fit, and says why not the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_python
from harness.failpoint_file import FailpointFile, FailpointSite
from harness.invariants import assert_gone, server_processes
from harness.server import Server, eventually, serving
from mmsup.ipc.failpoints import FailpointAction
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.resources.descriptor_budget import workers_that_fit

pytestmark = pytest.mark.slow
FILES = 160
MODELS = 8
CLIENTS = 80
"""More than may be connected to the control socket."""
FITTING = workers_that_fit(FILES, Settings((), "", "").gateway_seats)
STOP_S = 15.0
"""Of a server with nothing to drain; without a controller it took 47 s."""
CODE = """
import resource

import numpy as np

class Model:
    def infer(self, inputs):
        return {"y": np.array(resource.getrlimit(resource.RLIMIT_NOFILE), np.float32)}
"""


def write_limits_model(repository: Path, name: str) -> None:
    """Its answer is its own limit of open files, soft and hard."""
    write_python(repository, name, CODE, (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (2,)),))


@contextlib.contextmanager
def limited(repository: Path, folder: Path, limits: str, *flags: str) -> Iterator[Server]:
    """A server that a shell starts with these `ulimit` commands."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n{limits}\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    with serving(repository, *flags, python=str(python)) as server:
        yield server


def test_models_beyond_the_limit_of_open_files_are_refused_with_that_reason_and_the_others_serve(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for number in range(MODELS):
        write_limits_model(tmp_path, f"m{number}")
    with limited(tmp_path, tmp_path_factory.mktemp("bin"), f"ulimit -n {FILES}") as server:

        def states() -> list[str]:
            return [each["state"] for each in server.status()["models"]]

        eventually(lambda: states().count("ready") == FITTING and "loading" not in states(), "as many as fit serve")
        refused = [each for each in server.events("load_failed") if each["code"] == "too_many_files"]
        assert f"the limit of open files, {FILES}," in refused[0]["text"], refused
        assert "ulimit -n" in refused[0]["text"]
        assert "LimitNOFILE=" in refused[0]["text"]
        ready = [each["name"] for each in server.status()["models"] if each["state"] == "ready"]
        http = server.http()
        for name in ready:
            assert http.infer(name, x=("FP32", [1], [1.0]))[0] == 200
        status, told = http.infer(refused[0]["model"], x=("FP32", [1], [1.0]))
        assert (status, told["code"], told["retryable"]) == (507, "too_many_files", True)
        http.close()
        server.ctl("unload", name=ready[0])
        eventually(lambda: states().count("ready") == FITTING, "one that was refused has its place")
        controller = server.status()["brain"]["pid"]
        with contextlib.ExitStack() as stack:
            for _ in range(CLIENTS):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(STOP_S)
                client.connect(str(server.runtime_dir / "control.sock"))
            assert b"command lines are connected already" in client.recv(4096)
        eventually(lambda: states().count("ready") == FITTING, "`ctl` is there again")
        assert server.status()["brain"]["pid"] == controller
        os.kill(controller, signal.SIGKILL)
        eventually(lambda: server.status()["brain"]["pid"] != controller, "the next controller has room too")
        assert len(server.events("brain_exit")) == 1
        everyone = server_processes(server)
        began = time.monotonic()
        assert server.stop() == 0, server.log()
        assert time.monotonic() - began < STOP_S
        assert_gone(server, everyone)


def test_a_worker_has_the_soft_limit_of_open_files_that_the_server_was_started_with(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_limits_model(tmp_path, "limits")
    with limited(tmp_path, tmp_path_factory.mktemp("bin"), "ulimit -S -n 700; ulimit -H -n 3000") as server:
        http = server.http()
        _, reply = http.infer("limits", x=("FP32", [1], [1.0]))
        assert reply["outputs"][0]["data"] == [700.0, 3000.0]
        http.close()


def test_a_controller_without_room_for_a_child_refuses_that_child_and_lives(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_limits_model(repository, "limits")
    points = FailpointFile(tmp_path / "points")
    flags = ("--model-control-mode", "explicit")
    with serving(repository, *flags, env={"MMSUP_FAULT_POINTS": str(tmp_path / "points")}) as server:
        controller = server.status()["brain"]["pid"]
        points.order(FailpointAction.RAISE, FailpointSite("brain", "ipc.receive_rights"))
        with contextlib.suppress(Exception):
            server.ctl("load", name="limits")
        assert server.await_event("load_failed", "limits")["code"] == "too_many_files"
        server.await_state("limits", "ready")
        assert server.status()["brain"]["pid"] == controller
