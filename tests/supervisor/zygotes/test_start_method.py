from __future__ import annotations

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.processes.launch_spec import StartMethod
from mmsup.supervisor.zygotes.start_method import ZygoteKey, engine_set, exec_reason, wanted_zygotes

OWN = "/usr/bin/python3"
NUMPY, TORCH = ZygoteKey(OWN, "numpy"), ZygoteKey(OWN, "torch")
OTHER = ZygoteKey("/opt/env/bin/python", "numpy")


def spec(engine: str = "custom", **fields: object) -> ModelSpec:
    return ModelSpec("m", "1", "/m/1", "model.py", engine, "python", **fields)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("engine", "imports", "learnt", "preload", "expected"),
    [
        ("ort", "", "", "", "onnxruntime"),
        ("pytorch", "", "", "", "torch"),
        ("custom", "", "", "", "numpy"),
        ("custom", "torch", "", "", "torch"),
        ("custom", "torch", "numpy", "", "numpy"),
        ("custom", "", "torch", "", "torch"),
        ("custom", "torch", "torch", "numpy", "numpy"),
        ("custom", "", "", "onnxruntime", "onnxruntime"),
        ("ort", "", "torch", "", "onnxruntime"),
    ],
)
def test_the_engine_set_is_that_of_the_engine_or_what_a_class_imports(
    engine: str, imports: str, learnt: str, preload: str, expected: str
) -> None:
    assert engine_set(spec(engine, imports=imports, preload=preload), learnt) == expected


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "PYTHONHASHSEED", "LC_ALL", "LANG"],
)
def test_a_variable_that_is_read_when_a_program_starts_forces_exec(name: str) -> None:
    assert (
        exec_reason(spec(env={"A": "1", name: "x"})) == f"its env has {name}, which takes effect when a program starts"
    )


@pytest.mark.parametrize(
    "name", ["KMP_AFFINITY", "ATEN_CPU_CAPABILITY", "OMP_WAIT_POLICY", "MKL_DYNAMIC", "NPY_DISABLE_CPU_FEATURES"]
)
def test_a_variable_that_a_library_reads_at_its_import_forces_exec(name: str) -> None:
    assert name in exec_reason(spec(env={name: "x"}))


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ANY", "TZ"])
def test_other_variables_do_not(name: str) -> None:
    assert exec_reason(spec(env={name: "1"})) == ""


def test_a_model_may_ask_for_exec() -> None:
    assert exec_reason(spec(start="exec")) == "its configuration says so (start: exec)"


@pytest.mark.parametrize("device", ["cuda:0", "auto"])
def test_a_worker_on_a_gpu_is_forked_only_of_what_its_configuration_names(device: str) -> None:
    assert "(preload)" in exec_reason(spec("pytorch", device=device))
    assert exec_reason(spec("pytorch", device=device, preload="torch")) == ""


@pytest.mark.parametrize(
    ("mode", "workers", "expected"),
    [
        ("auto", [], set()),
        ("auto", [NUMPY, TORCH, OTHER], set()),
        ("auto", [NUMPY, TORCH, NUMPY], {NUMPY}),
        ("auto", [OTHER, OTHER, TORCH, TORCH], {OTHER, TORCH}),
        ("eager", [], {NUMPY}),
        ("eager", [TORCH], {NUMPY, TORCH}),
        ("none", [NUMPY] * 9, set()),
    ],
)
def test_a_zygote_is_wanted_from_the_second_worker_on(
    mode: str, workers: list[ZygoteKey], expected: set[ZygoteKey]
) -> None:
    assert wanted_zygotes(workers, mode, OWN) == expected


def test_a_start_method_says_how_and_why() -> None:
    assert StartMethod("zygote.1.1", "of zygote 1").text == "forked: of zygote 1"
    assert StartMethod("", "it was told so").text == "exec: it was told so"
