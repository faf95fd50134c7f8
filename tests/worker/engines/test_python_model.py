from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import write_python
from mmsup.ipc.errors import CallerError, ModelError
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.python_model import FALLBACK_NAME, PythonModelEngine

TEXTS = (TensorSpec("x", "BYTES", (-1,)),)
IS_RED = (
    "import numpy as np\n\n\nclass Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'] == 'red'}\n"
)


@pytest.fixture
def engine() -> Iterator[PythonModelEngine]:
    made = PythonModelEngine()
    yield made
    made.unload()


@pytest.mark.parametrize("head", ["def infer(self, inputs, sequences)", "async def infer(self, inputs, sequences)"])
def test_a_class_with_sequences_that_answers_many_times_is_known_for_it(
    head: str, tmp_path: Path, engine: PythonModelEngine
) -> None:
    code = f"class Model:\n    {head}:\n        yield inputs\n"
    assert engine.load(write_python(tmp_path, "m", code, TEXTS, TEXTS)).decoupled
    assert engine.is_streaming


def strings(*values: bytes) -> Array:
    return np.array(values, dtype=np.object_)


def red(folder: Path, **parameters: str) -> ModelSpec:
    spec = write_python(folder, "m", IS_RED, TEXTS, (TensorSpec("y", "BOOL", (-1,)),))
    return replace(spec, parameters=parameters)


def test_a_class_that_declares_text_compares_its_strings_with_text(tmp_path: Path, engine: PythonModelEngine) -> None:
    engine.load(red(tmp_path, strings="text"))
    assert engine.infer({"x": strings(b"red", b"blue")}, ("y",))["y"].tolist() == [True, False]


def test_a_class_that_declares_nothing_gets_bytes(tmp_path: Path, engine: PythonModelEngine) -> None:
    engine.load(red(tmp_path))
    assert engine.infer({"x": strings(b"red", b"blue")}, ("y",))["y"].tolist() == [False, False]


def test_a_string_that_is_no_text_is_the_callers_fault(tmp_path: Path, engine: PythonModelEngine) -> None:
    engine.load(red(tmp_path, strings="text"))
    with pytest.raises(CallerError, match="input 'x' has an element that is no UTF-8 text"):
        engine.infer({"x": strings(b"\xff")}, ("y",))


def test_text_keeps_its_shape_and_numbers_stay_as_they_are(tmp_path: Path, engine: PythonModelEngine) -> None:
    code = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'], 'z': inputs['z']}\n"
    both = (TensorSpec("x", "BYTES", (-1, 2)), TensorSpec("z", "FP32", (1,)))
    engine.load(replace(write_python(tmp_path, "m", code, both, both), parameters={"strings": "text"}))
    given = {"x": strings("ä".encode(), b"b", b"c", b"").reshape(2, 2), "z": np.ones(1, np.float32)}
    made = engine.infer(given, ("y", "z"))
    assert made["y"].tolist() == [["ä", "b"], ["c", ""]]
    assert made["z"].dtype == np.float32


def test_values_of_json_come_and_go_as_plain_ones(tmp_path: Path, engine: PythonModelEngine) -> None:
    code = (
        "class Model:\n    def infer(self, inputs):\n        given = inputs['x'][0]\n"
        "        return {'x': [given['a'], {'b': 1}], 'one': {'c': None}, 'raw': b'[1]', 'n': [1, 2]}\n"
    )
    outputs = (*(TensorSpec(name, "BYTES", (-1,)) for name in ("x", "one", "raw")), TensorSpec("n", "FP32", (2,)))
    engine.load(replace(write_python(tmp_path, "m", code, TEXTS, outputs), parameters={"strings": "json"}))
    made = engine.infer({"x": strings(b'{"a": "\\u00e4"}')}, ("x", "one", "raw", "n"))
    assert made["x"].tolist() == ['"\\u00e4"', '{"b": 1}']
    assert (made["one"].tolist(), made["raw"].tolist()) == (['{"c": null}'], [b"[1]"])
    assert made["n"].dtype == np.float32
    with pytest.raises(CallerError, match="input 'x' has an element that is no JSON"):
        engine.infer({"x": strings(b"{")}, ("x",))


@pytest.mark.parametrize(
    ("value", "datatype", "dtype"),
    [
        ("[1, 2]", "FP32", "float32"),
        ("0.5", "FP16", "float16"),
        ("[1, 2]", "INT8", "int8"),
        ("[300, 2]", "INT8", "int64"),
        ("[0.5]", "INT32", "float64"),
        ("np.array([0.5])", "FP32", "float64"),
        ("np.float64(0.5)", "FP32", "float64"),
    ],
)
def test_plain_numbers_become_the_declared_datatype_where_none_is_lost(
    value: str, datatype: str, dtype: str, tmp_path: Path, engine: PythonModelEngine
) -> None:
    code = f"import numpy as np\n\n\nclass Model:\n    def infer(self, inputs):\n        return {{'y': {value}}}\n"
    engine.load(write_python(tmp_path, "m", code, TEXTS, (TensorSpec("y", datatype, (-1,)),)))
    assert engine.infer({}, ("y",))["y"].dtype == np.dtype(dtype)


def test_a_word_that_is_neither_text_nor_bytes_fails_the_load(tmp_path: Path, engine: PythonModelEngine) -> None:
    with pytest.raises(ModelError, match="parameter 'strings' is neither text nor bytes nor json"):
        engine.load(red(tmp_path, strings="utf8"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import triton_python_backend_utils as pb_utils\n" + IS_RED, "only a model with a class TritonPythonModel is"),
        ("globals()['Triton' + 'PythonModel'] = object\n", "its text does not name it"),
    ],
)
def test_a_model_of_tritons_python_backend_that_was_taken_for_another_says_so(
    code: str, text: str, tmp_path: Path, engine: PythonModelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "triton_python_backend_utils", raising=False)
    spec = write_python(tmp_path, "m", code, TEXTS, TEXTS)
    with pytest.raises(ModelError, match=text):
        engine.load(spec)


def test_the_module_of_a_model_has_the_name_of_its_file(tmp_path: Path, engine: PythonModelEngine) -> None:
    code = (
        "import helper\n\n\nclass Model:\n    def infer(self, inputs):\n        return {'y': [helper.is_same(Model)]}\n"
    )
    spec = write_python(tmp_path, "m", code, TEXTS, (TensorSpec("y", "BOOL", (1,)),))
    spec = replace(spec, artefact="classifies.py")
    Path(spec.directory, "model.py").rename(Path(spec.directory, "classifies.py"))
    Path(spec.directory, "helper.py").write_text(
        "def is_same(kind):\n    import classifies\n    return classifies.Model is kind\n"
    )
    engine.load(spec)
    assert "classifies" in sys.modules
    assert engine.infer({}, ("y",))["y"].tolist() == [True]
    engine.unload()
    assert "classifies" not in sys.modules
    del sys.modules["helper"]


def test_a_file_that_is_called_like_an_installed_module_takes_nothing_from_it(
    tmp_path: Path, engine: PythonModelEngine, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(write_python(tmp_path, "m", IS_RED, TEXTS, TEXTS), artefact="nntplib_like.py")
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "nntplib_like.py").write_text("")
    Path(spec.directory, "model.py").rename(Path(spec.directory, "nntplib_like.py"))
    sys.path.insert(0, str(installed))
    try:
        engine.load(spec)
    finally:
        sys.path.remove(str(installed))
    assert FALLBACK_NAME in sys.modules
    assert "rename the file" in caplog.text


def test_models_in_one_process_have_modules_and_helpers_of_their_own(tmp_path: Path) -> None:
    engines, outputs = [PythonModelEngine() for _ in range(3)], (TensorSpec("y", "INT64", (1,)),)
    code = "import helper\n\n\nclass Model:\n    def infer(self, inputs):\n        return {'y': [helper.NUMBER]}\n"
    specs = [write_python(tmp_path, name, code, TEXTS, outputs) for name in ("m0", "m1")]
    specs.append(specs[1])  # a reload, after its files have changed
    for number, (engine, spec) in enumerate(zip(engines, specs, strict=True)):
        Path(spec.directory, "helper.py").write_text(f"NUMBER = {number}\n")
        engine.load(spec)
    assert len([each for each in sys.path if each.startswith(str(tmp_path))]) == len(engines)
    assert [engine.infer({}, ("y",))["y"].tolist() for engine in engines] == [[0], [1], [2]]
    for engine in engines:
        engine.unload()
    assert not [each for each in sys.path if each.startswith(str(tmp_path))]
    assert not [name for name in sys.modules if name == "model" or name.startswith(FALLBACK_NAME)]
    del sys.modules["helper"]


@pytest.mark.parametrize(
    ("methods", "can"),
    [
        ("", False),
        ("def offload(self): ...", False),
        ("def offload(self): ...\n    def restore(self): ...", True),
        ("def offload(self): ...\n    def restore(self, into=None): ...", True),
        ("def offload(self, path): ...\n    def restore(self, path): ...", False),
        ("offload = restore = 5", False),
    ],
)
def test_a_class_is_moved_only_if_it_has_both_methods_and_they_take_nothing(
    methods: str, can: bool, tmp_path: Path, engine: PythonModelEngine
) -> None:
    code = f"class Model:\n    def infer(self, inputs):\n        return inputs\n    {methods}\n"
    engine.load(write_python(tmp_path, "m", code, TEXTS, TEXTS))
    assert engine.can_offload is can
