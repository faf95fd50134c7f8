"""A real worker process and its exits: by StopWorker, by its model, by a hang, with its keeper."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_python
from engines.real_worker import PATIENCE_S, RealWorker, serving
from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.worker_control import (
    LoadProgress,
    ModelOffloaded,
    ModelRestored,
    OffloadModel,
    RestoreModel,
)
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import encode

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)


def test_stop_finishes_queued_requests_then_unloads_and_exits_with_zero(repository: Path, tmp_path: Path) -> None:
    spec = write_fault_model(repository, "m")
    hold = Path(spec.directory, "hold")
    hold.touch()  # a DEALER forgets what it has not read when its peer goes: read first, then let it go
    with serving(spec, tmp_path) as (worker, gateway):
        requests = [gateway.infer(mode("sleep", 0.1)), *[gateway.infer({"x": X}) for _ in range(10)]]
        gateway.send(*requests)
        while worker.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        worker.stop()
        assert [gateway.reply().id for _ in requests] == [each.id for each in requests]
        hold.unlink()
        assert worker.wait_exit() == exit_codes.SUCCESS
        assert "unloaded" in worker.log()
        assert worker.progress().activity is Activity.STOPPING


MOVABLE = """
import numpy as np

class Model:
    def load(self, context):
        self.factor = np.float32(2)

    def infer(self, inputs):
        return {"y": inputs["x"] * self.factor}

    def offload(self):
        self.factor = None

    def restore(self):
        self.factor = np.float32(2)
"""


def test_a_model_is_moved_when_its_requests_are_answered_and_serves_over_new_links_when_it_is_back(
    tmp_path: Path,
) -> None:
    tensors = (TensorSpec("x", "FP32", (-1,)),)
    spec = write_python(tmp_path / "repository", "m", MOVABLE, tensors, (TensorSpec("y", "FP32", (-1,)),))
    with serving(spec, tmp_path) as (worker, gateway):
        ready = worker.received[-1]
        assert ready.can_offload
        requests = [gateway.infer({"x": X}) for _ in range(20)]
        gateway.send(*requests)
        assert worker.control.send(encode(OffloadModel()))
        assert [gateway.array(gateway.reply(), "y").tolist() for _ in requests] == [(X * 2).tolist()] * 20
        assert isinstance(worker.receive_control(), ModelOffloaded)
        assert gateway.reply_within(PATIENCE_S) is None, "its links are closed"
        assert worker.progress().activity is Activity.IDLE
        for message, answer in ((OffloadModel(), ModelOffloaded), (RestoreModel(), ModelRestored)):
            assert worker.control.send(encode(message))
            assert isinstance(worker.receive_control(), answer)
        other = worker.gateway(generation=2)
        assert other.array(other.request({"x": X}), "y").tolist() == (X * 2).tolist()
        worker.stop()
        assert worker.wait_exit() == exit_codes.SUCCESS


@pytest.mark.parametrize(
    ("word", "amount", "status"),
    [
        ("exit", 3, 3),
        ("exit", 0, 0),
        ("sysexit", 5, 5),
        ("sysexit", 0, 0),
        ("segv", 0, -signal.SIGSEGV),
        ("abort", 0, -signal.SIGABRT),
        ("fpe", 0, -signal.SIGFPE),
        ("bus", 0, -signal.SIGBUS),
        ("kill", 0, -signal.SIGKILL),
    ],
)
def test_a_model_that_ends_its_process_leaves_its_status_and_the_started_requests(
    word: str, amount: float, status: int, repository: Path, tmp_path: Path
) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gateway):
        fatal, after = gateway.infer(mode(word, amount)), gateway.infer({"x": X})
        gateway.send(fatal, after)
        assert worker.wait_exit() == status
        assert worker.page.started() == {fatal.id}
        assert worker.progress().activity is Activity.BUSY
        os.set_blocking(worker.crash, False)
        crashed = (
            os.read(worker.crash, 100) if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE) else b"Fatal"
        )
        assert crashed.startswith(b"Fatal")


@pytest.mark.parametrize("word", ["hang", "spin", "deadlock"])
def test_a_hang_shows_on_the_page_with_its_start_time(word: str, repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gateway):
        request = gateway.infer(mode(word))
        gateway.send(request)
        while request.id not in worker.page.started():
            select.select([], [], [], 0.001)
        seen = worker.progress()
        select.select([], [], [], 0.2)
        now = worker.progress()
        assert (now.activity, now.since_ns, now.heartbeat_ns) == (Activity.BUSY, seen.since_ns, seen.heartbeat_ns)
        worker.process.send_signal(signal.SIGQUIT)  # its stacks, without its help
        deadline = PATIENCE_S
        while "model.py" not in worker.log() and deadline > 0:
            select.select([], [], [], 0.01)
            deadline -= 0.01
        assert "in harm" in worker.log()


def test_an_idle_worker_has_a_heartbeat_and_a_stopped_one_has_none(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), hang_limit_s=0.2)
    with serving(spec, tmp_path) as (worker, gateway):
        gateway.request({"x": X})
        first = worker.progress()
        while worker.progress().heartbeat_ns == first.heartbeat_ns:
            select.select([], [], [], 0.01)
        assert worker.progress().activity is Activity.IDLE
        worker.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED)
        stopped = worker.progress().heartbeat_ns
        select.select([], [], [], 0.3)
        assert worker.progress().heartbeat_ns == stopped
        worker.process.send_signal(signal.SIGCONT)
        assert gateway.request({"x": X}).code == ""


@pytest.mark.parametrize("when", ["loading", "idle", "at once"])
def test_a_worker_whose_keeper_is_gone_exits(when: str, repository: Path, tmp_path: Path) -> None:
    options = {"on_load": "sleep", "on_load_amount": 0.3} if when == "loading" else {}
    with RealWorker(write_fault_model(repository, "m", **options), tmp_path) as worker:
        if when != "at once":
            while not isinstance(worker.receive_control(), LoadProgress):
                pass
        if when == "idle":
            worker.wait_ready()
        os.close(worker.lifeline)
        worker.lifeline = -1
        assert worker.wait_exit() == exit_codes.KEEPER_LOST


def test_a_keeper_that_closes_the_control_channel_ends_the_worker(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_fault_model(repository, "m"), tmp_path) as worker:
        worker.wait_ready()
        worker.control.close()
        assert worker.wait_exit() == exit_codes.KEEPER_LOST
