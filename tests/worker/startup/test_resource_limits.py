"""Limits and environment that are set before the first import."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace

import pytest

from mmsup.ipc.environment import BLAS_WAIT, HUGE_PAGES
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.startup.resource_limits import FILES_LIMIT, library_environment, set_environment

SPEC = ModelSpec("m", "1", "/m/1", "model.onnx", "ort", "onnxruntime_onnx")


@pytest.mark.parametrize(
    ("device", "visible"),
    [("cpu", ""), ("cuda:3", "3"), ("GPU-1f2e", "GPU-1f2e"), ("MIG-7a", "MIG-7a"), ("cuda", None)],
)
def test_a_worker_sees_its_own_device_only(device: str, visible: str | None) -> None:
    assert library_environment(replace(SPEC, device=device), 4).get("CUDA_VISIBLE_DEVICES") == visible


def test_variables_that_the_operator_set_are_kept() -> None:
    environ = {"OMP_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "0"}
    set_environment(SPEC, environ)
    assert (environ["OMP_NUM_THREADS"], environ["ORT_DISABLE_TELEMETRY"]) == ("1", "0")
    assert environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_threads_that_wait_for_work_give_the_processor_back_unless_the_operator_says_else() -> None:
    environ: dict[str, str] = {}
    set_environment(SPEC, environ)
    assert environ[BLAS_WAIT[0]] == BLAS_WAIT[1]
    set_environment(SPEC, environ := {BLAS_WAIT[0]: "26"})
    assert environ[BLAS_WAIT[0]] == "26"


@pytest.mark.parametrize(
    ("of_model", "present", "left"),
    [
        ({}, HUGE_PAGES[1], None),
        ({}, "glibc.malloc.check=3", "glibc.malloc.check=3"),
        ({HUGE_PAGES[0]: HUGE_PAGES[1]}, HUGE_PAGES[1], HUGE_PAGES[1]),
        ({}, None, None),
    ],
)
def test_programs_of_a_model_do_not_inherit_how_the_heap_of_a_worker_is_made(
    of_model: dict[str, str], present: str | None, left: str | None
) -> None:
    environ = {} if present is None else {HUGE_PAGES[0]: present}
    set_environment(replace(SPEC, env=of_model), environ)
    assert environ.get(HUGE_PAGES[0]) == left


@pytest.mark.slow
def test_limits_bind_the_process_that_sets_them() -> None:
    code = (
        "import resource\n"
        "from mmsup.ipc.messages.worker_control import ConfigureWorker\n"
        "from mmsup.ipc.specs import ModelSpec\n"
        "from mmsup.worker.startup.resource_limits import set_limits\n"
        "spec = ModelSpec('m', '1', '/', 'a', 'ort', 'p')\n"
        "set_limits(ConfigureWorker(1, 1, 1, '/a', spec, 256 << 20, 64 << 20))\n"
        "for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE):\n"
        "    print(*resource.getrlimit(kind))\n"
        "try:\n    bytearray(400 << 20)\nexcept MemoryError:\n    print('refused')\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    files = min(FILES_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert printed.split("\n")[:-1] == [
        "0 0",
        f"{files} {files}",
        f"{256 << 20} {256 << 20}",
        f"{64 << 20} {64 << 20}",
        "refused",
    ]
