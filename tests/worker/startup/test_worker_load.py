"""A real worker process, from its spawn to Ready or to LoadFailed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model, write_identity_onnx
from engines.life import Life, serving
from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.worker_control import LoadProgress
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)


def test_it_says_who_it_is_then_its_progress_then_its_metadata(repository: Path, tmp_path: Path) -> None:
    with Life(write_identity_onnx(repository, "m", "FP32", (-1, 3)), tmp_path) as life:
        metadata = life.ready()
        assert [type(each).__name__ for each in life.said] == ["Hello", "Stage", "Stage", "Stage", "Ready"]
        assert [each.is_warm_up for each in life.said if isinstance(each, LoadProgress)] == [False, False, True]
        assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
        assert life.said[0].role == "worker"
        assert (life.said[0].wire, life.said[0].instance, life.said[0].generation) == (WIRE_VERSION, 7, 1)


def test_another_wire_is_refused_with_both_versions_named(repository: Path, tmp_path: Path) -> None:
    with Life(write_identity_onnx(repository, "m"), tmp_path, wire=99) as life:
        failed = life.failed()
        assert f"wire 99, this worker wire {WIRE_VERSION}" in failed.text
        assert life.ended() == exit_codes.LOAD_FAILED


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_load": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_import": "raise"}, "model 'm' failed: asked to raise, see model.py"),
        ({"on_load": "memory_error"}, "model 'm' ran out of memory"),
    ],
)
def test_a_load_that_raises_is_told_without_a_trace_which_goes_to_the_log(
    options: dict[str, object], text: str, repository: Path, tmp_path: Path
) -> None:
    with Life(write_fault_model(repository, "m", **options), tmp_path) as life:
        failed = life.failed()
        assert failed.text == text
        assert failed.code == "load_failed"
        assert life.ended() == exit_codes.LOAD_FAILED
        assert "Traceback" in life.printed()


def test_a_folder_that_is_gone_is_a_failed_load(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_identity_onnx(repository, "m"), directory=str(repository / "nowhere"))
    with Life(spec, tmp_path) as life:
        assert life.failed().code == "load_failed"
        assert life.ended() == exit_codes.LOAD_FAILED


@pytest.mark.parametrize(
    ("harm", "amount", "status"),
    [("exit", 3, 3), ("exit", 0, 0), ("sysexit", 4, 4), ("segv", 0, -signal.SIGSEGV), ("abort", 0, -signal.SIGABRT)],
)
def test_a_load_that_ends_the_process_shows_its_own_status(
    harm: str, amount: int, status: int, repository: Path, tmp_path: Path
) -> None:
    with Life(write_fault_model(repository, "m", on_load=harm, on_load_amount=amount), tmp_path) as life:
        assert life.ended() == status


def test_a_load_that_hangs_says_so_on_the_page_and_ends_by_sigterm(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m", on_load="hang"), tmp_path) as life:
        while not (isinstance(said := life.hear(), LoadProgress) and said.text.startswith("loading")):
            pass
        assert life.progress().activity is Activity.LOADING
        life.process.terminate()
        assert life.ended() == -signal.SIGTERM


def test_limits_bind_the_model(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), memory_bytes=512 << 20)
    with Life(spec, tmp_path, data_limit_bytes=512 << 20) as life:
        life.ready()
        gateway = life.gateway()
        reply = gateway.ask(mode("allocate", 1000))
        assert reply.code == "inference_failed"
        assert reply.text == f"model 'm' ran out of memory under its cap of {512 << 20} bytes"
        assert gateway.ask({"x": X}).code == ""
        limits = Path(f"/proc/{life.process.pid}/limits").read_text()
        assert any(line.split()[:5] == ["Max", "core", "file", "size", "0"] for line in limits.splitlines())


def test_torch_and_zeromq_are_not_in_a_worker_that_does_not_need_them(repository: Path, tmp_path: Path) -> None:
    with serving(write_identity_onnx(repository, "m"), tmp_path) as (life, _):
        mapped = Path(f"/proc/{life.process.pid}/maps").read_text()
        assert "onnxruntime" in mapped
        assert "libtorch" not in mapped
        assert "zmq" not in mapped


def test_a_worker_holds_what_it_was_given_and_its_own_sockets(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m"), tmp_path) as life:
        life.ready()
        held = [os.readlink(each) for each in Path(f"/proc/{life.process.pid}/fd").iterdir()]
        kinds = Counter(each.partition(":")[0] for each in held)
        assert kinds["pipe"] == 2, held  # lifeline, crash
        assert kinds["/memfd"] == 1, held  # the page's mapping
        assert kinds["socket"] == 1, held  # control
        assert set(kinds) == {"pipe", "/memfd", "socket", "/dev/null", str(life.output)}, held
