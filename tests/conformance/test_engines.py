"""One suite for every engine: what a worker may rely on, whatever the kind of model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.build import (
    write_exported,
    write_identity_onnx,
    write_python,
    write_safetensors,
    write_torchscript,
)
from mmsup.ipc.errors import CallerError, ModelError
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines.python_model import forget_module
from mmsup.worker.execution.engine import Engine, open_engine

NUMBERS = tuple(sorted(NUMPY.keys() - {"BYTES"}))


def write_identity_python(
    repository: Path, name: str, datatype: str, dims: tuple[int, ...], max_batch: int = 0
) -> ModelSpec:
    inputs, outputs = (TensorSpec("x", datatype, dims),), (TensorSpec("y", datatype, dims),)
    code = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"
    return write_python(repository, name, code, inputs, outputs, max_batch)


@dataclass(frozen=True)
class Kind:
    """One engine with the identity model that it is tested on."""

    write: Callable[..., ModelSpec]
    input: str
    output: str
    datatypes: tuple[str, ...]


KINDS = {
    "ort": Kind(write_identity_onnx, "x", "y", (*NUMBERS, "BYTES")),
    "pytorch": Kind(write_torchscript, "INPUT__0", "OUTPUT__0", NUMBERS),
    "custom": Kind(write_identity_python, "x", "y", (*NUMBERS, "BYTES")),
}
ENGINES = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
PAIRS = [(name, datatype) for name, kind in KINDS.items() for datatype in kind.datatypes]

pytestmark = pytest.mark.slow  # torch takes two seconds to import


def loaded(spec: ModelSpec) -> Engine:
    engine = open_engine(spec.engine)
    engine.load(spec)
    return engine


def sample(datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        array = np.empty(int(np.prod(shape)), dtype=np.object_)
        array[:] = [f"é{index}".encode() for index in range(array.size)]
        return array.reshape(shape)
    return (np.arange(int(np.prod(shape))) % 2048).reshape(shape).astype(NUMPY[datatype])


def sealed(array: Array) -> Array:
    """Read-only, as a request's memory is."""
    array.flags.writeable = False
    return array


@ENGINES
def test_metadata_names_types_and_shapes(kind: Kind, tmp_path: Path) -> None:
    spec = kind.write(tmp_path, "m", "FP32", (-1, 3))
    engine = open_engine(spec.engine)
    metadata = engine.load(spec)
    assert metadata.inputs == (TensorSpec(kind.input, "FP32", (-1, 3)),)
    assert metadata.outputs == (TensorSpec(kind.output, "FP32", (-1, 3)),)
    assert (metadata.platform, metadata.max_batch_size) == (spec.platform, 0)
    engine.unload()


@ENGINES
def test_the_batch_axis_is_left_out_of_the_metadata_and_is_there_in_a_run(kind: Kind, tmp_path: Path) -> None:
    spec = kind.write(tmp_path, "m", "FP32", (3,), 8)
    engine = open_engine(spec.engine)
    metadata = engine.load(spec)
    assert metadata.inputs == (TensorSpec(kind.input, "FP32", (3,)),)
    assert metadata.max_batch_size == 8
    array = sealed(sample("FP32", (5, 3)))
    assert (engine.infer({kind.input: array}, (kind.output,))[kind.output] == array).all()
    engine.unload()


@pytest.mark.parametrize(("name", "datatype"), PAIRS)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (0,)])
def test_every_datatype_comes_back_as_it_went(name: str, datatype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    kind = KINDS[name]
    engine = loaded(kind.write(tmp_path, "m", datatype, (-1,) * len(shape)))
    array = sealed(sample(datatype, shape))
    made = engine.infer({kind.input: array}, (kind.output,))[kind.output]
    assert made.shape == shape
    if datatype == "BYTES":
        assert [each if isinstance(each, bytes) else each.encode() for each in made.reshape(-1)] == list(
            array.reshape(-1)
        )
    else:
        assert made.dtype == array.dtype
        assert made.tobytes() == array.tobytes()
    engine.unload()


@ENGINES
def test_an_input_is_never_changed_and_outlives_its_memory(kind: Kind, tmp_path: Path) -> None:
    """A result stays, when the request's memory is reused."""
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    memory = bytearray(np.arange(4, dtype=np.float32).tobytes())
    view = np.frombuffer(memoryview(memory).toreadonly(), np.float32)
    made = np.copy(engine.infer({kind.input: view}, (kind.output,))[kind.output])
    assert (made == [0, 1, 2, 3]).all()
    assert (view == [0, 1, 2, 3]).all()
    engine.unload()


GUARD = 64


def buffer_for(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """An output buffer filled with 0xA5, and the bytes in and around it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.full(GUARD + size + GUARD, 0xA5, np.uint8)
    return memory[GUARD : GUARD + size].view(dtype).reshape(shape), memory


def is_guarded(memory: Array) -> bool:
    """Whether nothing was written outside the buffer."""
    return bool((memory[:GUARD] == 0xA5).all() and (memory[-GUARD:] == 0xA5).all())


@pytest.mark.parametrize(("name", "datatype"), [pair for pair in PAIRS if pair[1] != "BYTES"])
@pytest.mark.parametrize("shape", [(3,), (0,), (300_000,), (2, 150_000)])
def test_a_result_is_the_same_in_its_buffer_and_outside(
    name: str, datatype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    kind = KINDS[name]
    engine = loaded(kind.write(tmp_path, "m", datatype, (-1,) * len(shape)))
    buffer, memory = buffer_for(NUMPY[datatype], shape)
    for turn in range(3):  # the second finds the bindings of the first
        array = sealed(np.roll(sample(datatype, shape), turn))
        made = engine.infer({kind.input: array}, (kind.output,), {kind.output: buffer})[kind.output]
        assert made is buffer or not np.shares_memory(made, buffer)
        assert made.dtype == array.dtype
        assert made.shape == array.shape
        assert made.tobytes() == array.tobytes()
        assert is_guarded(memory)
    engine.unload()


@ENGINES
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("f4", (99_999,)), ("f4", (100_001,)), ("f4", (100_000, 1)), ("f8", (100_000,)), ("i4", (100_000,)), ("f4", (0,))],
)
def test_a_buffer_of_the_wrong_size_is_not_overrun_and_costs_no_result(
    kind: Kind, dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    array = sealed(sample("FP32", (100_000,)))
    buffer, memory = buffer_for(np.dtype(dtype), shape)
    for _ in range(2):
        made = engine.infer({kind.input: array}, (kind.output,), {kind.output: buffer})[kind.output]
        assert not np.shares_memory(made, buffer)
        assert made.tobytes() == array.tobytes()
        assert is_guarded(memory)
    engine.unload()


@ENGINES
def test_a_buffer_under_the_name_of_no_wanted_output_is_not_written(kind: Kind, tmp_path: Path) -> None:
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    array = sealed(sample("FP32", (100_000,)))
    buffer, memory = buffer_for(np.dtype("f4"), array.shape)
    made = engine.infer({kind.input: array}, (kind.output,), {"unknown": buffer})
    assert made[kind.output].tobytes() == array.tobytes()
    assert (memory == 0xA5).all()
    engine.unload()


@ENGINES
def test_a_result_outside_its_buffer_survives_the_next_run(kind: Kind, tmp_path: Path) -> None:
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    first = np.full(100_000, 1, np.float32)
    made = engine.infer({kind.input: first}, (kind.output,))[kind.output].copy()
    second = engine.infer({kind.input: first.copy()}, (kind.output,))[kind.output]
    buffer, _ = buffer_for(np.dtype("f4"), first.shape)
    engine.infer({kind.input: first * 2}, (kind.output,), {kind.output: buffer})
    assert (second == made).all()
    engine.unload()


@ENGINES
def test_names_that_the_model_does_not_have_raise_and_the_next_run_works(kind: Kind, tmp_path: Path) -> None:
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    array = sample("FP32", (2,))
    with pytest.raises(Exception):  # noqa: B017,PT011 - whatever the library raises
        engine.infer({"unknown": array}, (kind.output,))
    assert (engine.infer({kind.input: array}, (kind.output,))[kind.output] == array).all()
    engine.unload()


@ENGINES
def test_a_missing_artifact_is_an_exception_and_no_crash(kind: Kind, tmp_path: Path) -> None:
    spec = replace(kind.write(tmp_path, "m", "FP32", (-1,)), artefact="absent.pt")
    with pytest.raises(Exception):  # noqa: B017,PT011 - whatever the library raises
        open_engine(spec.engine).load(replace(spec, artefact=f"absent{Path(spec.artefact).suffix}"))


@ENGINES
def test_an_unloaded_engine_holds_no_device_memory(kind: Kind, tmp_path: Path) -> None:
    engine = loaded(kind.write(tmp_path, "m", "FP32", (-1,)))
    engine.shrink()
    engine.unload()
    assert engine.device_bytes() == 0


@ENGINES
def test_an_absent_cuda_device_is_a_failed_load_that_names_it(kind: Kind, tmp_path: Path) -> None:
    if kind is KINDS["custom"]:
        pytest.skip("a user's class is told its device and decides itself")
    spec = replace(kind.write(tmp_path, "m", "FP32", (-1,)), device="cuda:0")
    with pytest.raises(ModelError, match=r"is to run on 'cuda:0', but"):
        open_engine(spec.engine).load(spec)


# What only one engine has.


@pytest.mark.parametrize("datatype", [each for each in NUMBERS if each != "BF16"])
def test_ort_writes_a_large_output_into_its_buffer(datatype: str, tmp_path: Path) -> None:
    engine = loaded(write_identity_onnx(tmp_path, "m", datatype))
    array = sealed(sample(datatype, (300_000,)))
    buffer, _ = buffer_for(NUMPY[datatype], array.shape)
    made = engine.infer({"x": array}, ("y",), {"y": buffer})["y"]
    assert made is buffer
    assert made.tobytes() == array.tobytes()


def test_ort_takes_other_inputs_at_other_addresses_in_turn(tmp_path: Path) -> None:
    engine = loaded(write_identity_onnx(tmp_path, "m", "FP32", (-1, -1)))
    arrays = [sealed(np.full((300, 300 + each), each, np.float32)) for each in range(4)]
    buffers = [buffer_for(np.dtype("f4"), each.shape)[0] for each in arrays]
    for turn in (0, 1, 2, 3, 2, 1, 0, 3):
        made = engine.infer({"x": arrays[turn]}, ("y",), {"y": buffers[turn]})["y"]
        assert made is buffers[turn]
        assert (made == turn).all()


def test_ort_raises_the_same_for_a_wrong_input_with_a_buffer_as_without(tmp_path: Path) -> None:
    engine = loaded(write_identity_onnx(tmp_path, "m", "FP32"))
    wrong, buffer = sample("FP64", (100_000,)), buffer_for(np.dtype("f4"), (100_000,))[0]
    texts: list[str] = []
    for buffers in ({}, {"y": buffer}):
        with pytest.raises(Exception, match="Unexpected input data type") as caught:
            engine.infer({"x": wrong}, ("y",), buffers)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_ort_takes_text_and_refuses_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    engine = loaded(write_identity_onnx(tmp_path, "m", "BYTES"))
    with pytest.raises(CallerError, match="input 'x' holds bytes that are not UTF-8"):
        engine.infer({"x": np.array([b"\xff\xfe"], dtype=np.object_)}, ("y",))


def test_ort_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    spec = write_identity_onnx(tmp_path, "m")
    Path(spec.directory, spec.artefact).write_bytes(b"not a model")
    with pytest.raises(Exception, match=r"Protobuf|INVALID_PROTOBUF"):
        open_engine("ort").load(spec)


def test_a_graph_of_torch_export_has_names_of_its_own(tmp_path: Path) -> None:
    spec = write_exported(tmp_path, "m")
    engine = open_engine("pytorch")
    metadata = engine.load(spec)
    assert metadata.inputs == (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 4)))
    assert metadata.outputs == (TensorSpec("total", "FP32", (-1, 4)), TensorSpec("difference", "FP32", (-1, 4)))
    x, y = sample("FP32", (2, 4)), np.ones((2, 4), np.float32)
    made = engine.infer({"y": y, "x": x}, ("difference",))
    assert list(made) == ["difference"]
    assert (made["difference"] == x - 1).all()


def test_a_graph_of_torch_export_takes_configured_names_by_position(tmp_path: Path) -> None:
    spec = write_exported(tmp_path, "m", max_batch=8)
    inputs = (TensorSpec("INPUT__0", "FP32", (4,)), TensorSpec("INPUT__1", "FP32", (4,)))
    engine = open_engine("pytorch")
    metadata = engine.load(replace(spec, inputs=inputs, max_batch_size=8))
    assert metadata.inputs == inputs
    x = np.ones((1, 4), np.float32)
    assert (engine.infer({"INPUT__0": x * 3, "INPUT__1": x}, ("difference",))["difference"] == 2).all()


def test_safetensors_run_in_the_operators_class_which_may_work_in_place(tmp_path: Path) -> None:
    forget_module()  # those of models that were not unloaded
    engine = loaded(write_safetensors(tmp_path, "m", scale=3.0))
    array = sealed(sample("FP32", (3,)))
    assert (engine.infer({"x": array}, ("y",))["y"] == [0, 3, 6]).all()
    assert (array == [0, 1, 2]).all()
    engine.unload()
    assert "model" not in sys.modules


def test_the_class_beside_the_weights_uses_its_folder_and_is_found_by_children_that_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_module()  # those of models that were not unloaded
    monkeypatch.setattr(sys, "path", [each for each in sys.path if not Path(each, "model.py").exists()])
    spec = write_safetensors(tmp_path, "m", scale=3.0)
    code = Path(spec.directory, "model.py")
    Path(spec.directory, "factors_of_m.py").write_text("FACTOR = 2\n")
    added = (
        "\n    def twice(self):\n        import multiprocessing\n"
        "        with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "            return pool.apply(half, (8,))\n"
        "\n\ndef half(value):\n    return value / FACTOR\n"
    )
    code.write_text("from factors_of_m import FACTOR\n" + code.read_text() + added)
    engine = loaded(spec)
    assert sys.modules["model"].Model.twice(None) == 4
    engine.unload()
    assert spec.directory not in sys.path


def test_a_pickled_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    import torch

    spec = write_torchscript(tmp_path, "m")
    torch.save({"weight": torch.zeros(1)}, Path(spec.directory, spec.artefact))
    with pytest.raises(ModelError, match="a pickled checkpoint is not loaded"):
        open_engine("pytorch").load(spec)


def test_a_users_class_may_write_to_its_inputs_and_keep_them(tmp_path: Path) -> None:
    code = (
        "class Model:\n    kept = []\n"
        "    def infer(self, inputs):\n"
        "        inputs['x'] += 1\n        self.kept.append(inputs['x'])\n        return {'y': self.kept[0]}\n"
    )
    inputs, outputs = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
    spec = write_python(tmp_path, "m", code, inputs, outputs)
    memory = bytearray(8)
    view = np.frombuffer(memoryview(memory).toreadonly(), np.float32)
    engine = loaded(spec)
    assert (engine.infer({"x": view}, ("y",))["y"] == 1).all()
    memory[:] = b"\xff" * 8
    assert (engine.infer({"x": view}, ("y",))["y"] == 1).all()
    engine.unload()
    engine = loaded(replace(spec, parameters={"read_only_inputs": "true"}))
    with pytest.raises(ValueError, match="read-only"):
        engine.infer({"x": view}, ("y",))
    engine.unload()


def test_a_users_class_gets_its_context_and_finds_its_other_files(tmp_path: Path) -> None:
    code = (
        "import numpy as np\nimport beside\n\n\nclass Model:\n"
        "    def load(self, context):\n        self.context = context\n"
        "    def infer(self, inputs):\n        c = self.context\n"
        "        return {'y': np.array([c.name, c.version, c.directory, c.device, c.parameters['k'], beside.WORD])}\n"
    )
    inputs, outputs = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "BYTES", (6,)),)
    spec = replace(write_python(tmp_path, "m", code, inputs, outputs), parameters={"k": "v"})
    Path(spec.directory, "beside.py").write_text("WORD = 'found'\n")
    before = list(sys.path)
    engine = loaded(spec)
    answer = engine.infer({"x": sample("FP32", (1,))}, ("y",))["y"]
    assert list(answer) == ["m", "1", spec.directory, "cpu", "v", "found"]
    engine.unload()
    assert sys.path == before
    assert not list(Path(spec.directory).rglob("*.pyc")), "nothing is written into a model's folder"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("class Modell: ...\n", "has no class Model with a method infer"),
        ("class Model: ...\n", "has no class Model with a method infer"),
    ],
)
def test_a_users_file_without_its_class_is_refused_with_what_is_missing(code: str, text: str, tmp_path: Path) -> None:
    inputs, outputs = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
    with pytest.raises(ModelError, match=text):
        loaded(write_python(tmp_path, "m", code, inputs, outputs))


@pytest.mark.parametrize("engine", ["ort", "pytorch", "custom"])
def test_a_value_that_is_neither_true_nor_false_is_refused(engine: str, tmp_path: Path) -> None:
    kind = KINDS[engine]
    name = "allow_spinning" if engine == "ort" else "read_only_inputs"
    spec = replace(kind.write(tmp_path, "m", "FP32", (-1,)), parameters={name: "maybe"})
    with pytest.raises(ModelError, match=f"parameter '{name}' is neither true nor false"):
        open_engine(engine).load(spec)


@pytest.mark.parametrize(("datatype", "shape"), [("BYTES", (-1,)), ("INT64", (-1,)), ("FP32", (-1, 0))])
def test_an_empty_list_from_a_users_class_has_the_declared_type(
    tmp_path: Path, datatype: str, shape: tuple[int, ...]
) -> None:
    empty = "[]" if len(shape) == 1 else "[[], []]"
    code = f"class Model:\n    def infer(self, inputs):\n        return {{'y': {empty}}}\n"
    inputs, outputs = (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", datatype, shape),)
    engine = loaded(write_python(tmp_path, "m", code, inputs, outputs))
    made = engine.infer({"x": np.zeros(1, np.float32)}, ("y",))["y"]
    assert (made.size, made.dtype) == (0, NUMPY[datatype])
    engine.unload()
