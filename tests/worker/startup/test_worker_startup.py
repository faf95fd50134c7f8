"""A real worker process, from its spawn to WorkerReady or to LoadFailed."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_identity_onnx, write_python
from engines.real_worker import RealWorker, serving
from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import LoadProgress, WorkerReady
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
SPAWNS = """\
import multiprocessing

import numpy as np


def square(number):
    return number * number


class Model:
    def load(self, context):
        self.pool = multiprocessing.get_context("spawn").Pool(1)

    def infer(self, inputs):
        return {"y": np.array(self.pool.map(square, inputs["x"].tolist()), dtype=np.float32)}

    def unload(self):
        self.pool.terminate()
"""


def test_it_sends_hello_then_its_progress_then_its_metadata(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_identity_onnx(repository, "m", "FP32", (-1, 3)), tmp_path) as worker:
        metadata = worker.wait_ready()
        progress = [LoadProgress] * 3
        assert [type(each) for each in worker.received] == [Hello, *progress, WorkerReady]
        assert [each.is_warm_up for each in worker.received if isinstance(each, LoadProgress)] == [False, False, True]
        assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
        assert worker.received[0] == Hello("worker", WIRE_VERSION, 7, 1)


def test_another_wire_version_is_refused_with_both_versions_named(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_identity_onnx(repository, "m"), tmp_path, wire=99) as worker:
        failed = worker.wait_load_failed()
        assert f"wire version 99, this worker {WIRE_VERSION}" in failed.text
        assert worker.wait_exit() == exit_codes.LOAD_FAILED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_load": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_import": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_load": "memory_error"}, "model 'm' ran out of memory"),
    ],
)
def test_a_load_that_raises_is_reported_without_its_trace_which_is_logged(
    options: dict[str, object], text: str, repository: Path, tmp_path: Path
) -> None:
    with RealWorker(write_fault_model(repository, "m", **options), tmp_path) as worker:
        failed = worker.wait_load_failed()
        assert failed.text == text
        assert failed.code == "load_failed"
        assert re.fullmatch(r"(MemoryError|RuntimeError|ValueError)(: .*)?, at model\.py:\d+", failed.detail)
        assert worker.wait_exit() == exit_codes.LOAD_FAILED
        assert "Traceback" in worker.log()


def test_a_model_computes_in_processes_that_it_spawns(repository: Path, tmp_path: Path) -> None:
    tensors = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
    with RealWorker(write_python(repository, "m", SPAWNS, *tensors), tmp_path) as worker:
        worker.wait_ready()
        gateway = worker.gateway()
        reply = gateway.request({"x": X})
        assert reply.code == "", reply.text
        assert isinstance(reply.locations[0], bytes)
        assert np.frombuffer(reply.locations[0], np.float32).tolist() == [0, 1, 4, 9, 16]
        worker.stop()
        assert worker.wait_exit() == exit_codes.SUCCESS


def test_a_missing_folder_is_a_failed_load(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_identity_onnx(repository, "m"), directory=str(repository / "nowhere"))
    with RealWorker(spec, tmp_path) as worker:
        assert worker.wait_load_failed().code == "load_failed"
        assert worker.wait_exit() == exit_codes.LOAD_FAILED


@pytest.mark.parametrize(
    ("harm", "amount", "status"),
    [("exit", 3, 3), ("exit", 0, 0), ("sysexit", 4, 4), ("segv", 0, -signal.SIGSEGV), ("abort", 0, -signal.SIGABRT)],
)
def test_a_load_that_ends_the_process_leaves_its_own_status(
    harm: str, amount: int, status: int, repository: Path, tmp_path: Path
) -> None:
    with RealWorker(write_fault_model(repository, "m", on_load=harm, on_load_amount=amount), tmp_path) as worker:
        assert worker.wait_exit() == status


def test_a_load_that_hangs_shows_on_the_page_and_ends_by_sigterm(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_fault_model(repository, "m", on_load="hang"), tmp_path) as worker:
        while not (isinstance(said := worker.receive_control(), LoadProgress) and said.text.startswith("loading")):
            pass
        assert worker.progress().activity is Activity.LOADING
        worker.process.terminate()
        assert worker.wait_exit() == -signal.SIGTERM


def test_limits_bind_the_model(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), memory_bytes=512 << 20)
    with RealWorker(spec, tmp_path, data_limit_bytes=512 << 20) as worker:
        worker.wait_ready()
        gateway = worker.gateway()
        reply = gateway.request(mode("allocate", 1000))
        assert reply.code == "inference_failed"
        assert reply.text == f"model 'm' ran out of memory under its cap of {512 << 20} bytes"
        assert gateway.request({"x": X}).code == ""
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
        assert any(line.split()[:5] == ["Max", "core", "file", "size", "0"] for line in limits.splitlines())


def test_torch_and_zeromq_are_not_in_a_worker_that_does_not_need_them(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (worker, _):
        mapped = Path(f"/proc/{worker.process.pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "libtorch" not in mapped
        assert "zmq" not in mapped


def test_a_worker_has_only_inherited_descriptors_and_its_own_sockets(repository: Path, tmp_path: Path) -> None:
    with RealWorker(write_fault_model(repository, "m"), tmp_path) as worker:
        worker.wait_ready()
        held = [os.readlink(each) for each in Path(f"/proc/{worker.process.pid}/fd").iterdir()]
        kinds = Counter(each.partition(":")[0] for each in held)
        assert kinds["pipe"] == 2, held  # lifeline, crash
        assert kinds["/memfd"] == 1, held  # the page's mapping
        assert kinds["socket"] == 1, held  # control
        assert set(kinds) == {"pipe", "/memfd", "socket", "/dev/null", str(worker.output)}, held
