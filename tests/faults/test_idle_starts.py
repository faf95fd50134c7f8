"""Processes that start stay behind those who serve, and compete with them once they are ready, or have waited."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engines.build import write_identity_onnx, write_python
from harness.bystander import Bystander
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.supervisor.processes.idle_start import AWAITED_S

pytestmark = pytest.mark.slow

X, Y = [TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,))]
LOADS = """\
import pathlib, subprocess, threading, time


class Model:
    def load(self, context):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        subprocess.Popen(["sleep", "1000"])
        while not pathlib.Path(FILE).exists():
            WAIT

    def infer(self, inputs):
        return {"y": inputs["x"]}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    write_identity_onnx(repository, "one")
    flags = ("--spare-gateway", "true", "--model-control-mode", "explicit", "--load-model", "one")
    with serving(repository, *flags) as running:
        if not running.status()["isolation"].endswith("starts yield"):
            pytest.skip(f"nothing yields here: {running.status()['isolation']}")
        yield running


def is_idle(pid: int) -> bool:
    """Whether it runs only while nobody else wants the processor."""
    groups = [line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    v1 = [f"cpu{path}" for controllers, path in groups if "cpu" in controllers.split(",")]
    (folder,) = v1 or [path for controllers, path in groups if not controllers]
    return Path(f"/sys/fs/cgroup/{folder}/cpu.idle").read_text() == "1\n"


def has_waited(pid: int) -> bool:
    """Whether others kept it from the processor so much that it may compete already: on a busy machine."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9 > AWAITED_S / 4


def rows(server: Server, role: str, state: str) -> list[int]:
    return [each["pid"] for each in server.ctl("ps")["processes"] if (each["role"], each["state"]) == (role, state)]


@contextlib.contextmanager
def loading(server: Server, name: str, wait: str) -> Iterator[tuple[Path, int]]:
    """A model whose load waits so for a file; the file, and the worker when it has begun. At the end it is ready."""
    file = server.repository / f"{name}.go"
    write_python(server.repository, name, LOADS.replace("FILE", repr(str(file))).replace("WAIT", wait), X, Y)
    http = server.http()
    try:
        http.connection.request("POST", f"/v2/repository/models/{name}/load", "{}")
        server.await_event("worker_spawn", name)
        worker = eventually(lambda: next(iter(server.pids(name)), 0), "its worker")
        eventually(lambda: psutil.Process(worker).children(), "its load has begun")
        yield file, worker
        file.touch()
        response = http.connection.getresponse()
        assert response.status == 200, response.read()
    finally:
        http.close()


def tasks(worker: int) -> list[int]:
    """All threads of a worker, and its child."""
    threads = [int(each) for each in os.listdir(f"/proc/{worker}/task")]
    assert len(threads) > 1
    return [*threads, *(each.pid for each in psutil.Process(worker).children())]


def test_a_worker_loads_behind_others_and_serves_beside_them(server: Server) -> None:
    with Bystander(server, "one"):
        with loading(server, "waits", "sum(range(99_999)); time.sleep(0.01)") as (_, worker):
            eventually(lambda: all(is_idle(each) for each in tasks(worker)) or has_waited(worker), "it is idle")
            assert not is_idle(server.pid("one"))
        assert not any(is_idle(each) for each in tasks(worker)), "what it started before is still behind others"
    assert not server.events("worker_condemned", "waits")


def test_a_worker_that_gets_no_processor_competes_after_a_moment(server: Server) -> None:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        with loading(server, "starves", "pass") as (file, worker):
            eventually(lambda: not is_idle(worker), "it competes")
            assert not file.exists(), "it is ready, and competes for that"
    finally:
        for each in others:
            each.kill()
            each.wait()


def test_a_standby_starts_behind_others_and_serves_beside_them(server: Server) -> None:
    (old,) = eventually(lambda: rows(server, "gateway", "spare"), "a standby gateway")
    with Bystander(server, "one", may_be_cut=True) as one:
        os.kill(old, signal.SIGKILL)
        begun = eventually(lambda: [each for each in rows(server, "gateway", "starting") if each], "another standby")
        assert is_idle(begun[0]) or has_waited(begun[0])
        (found,) = eventually(lambda: rows(server, "gateway", "spare"), "it is up")
        assert found == begun[0]
        eventually(lambda: not is_idle(found), "it competes")
        (serves,) = rows(server, "gateway", "ready")
        assert not is_idle(serves)
        os.kill(serves, signal.SIGKILL)
        one.await_more(20)
        assert rows(server, "gateway", "ready") == [found]
        assert not is_idle(found)
