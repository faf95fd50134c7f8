"""What `mmsup check` sees in the files of models, without running code."""

from __future__ import annotations

import json
import os
import struct
import sys
import zipfile
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, external_data_helper, helper

from mmsup.ipc.python_models import TRITON_MODULE_TEXT
from mmsup.supervisor.cli.check.command import check
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.contents.interpreter import Interpreter
from mmsup.supervisor.repository.scanner import scan

TENSORS = """\
inputs: [{name: x, datatype: BYTES, shape: [-1]}]
outputs: [{name: y, datatype: BYTES, shape: [-1]}]
trusted: true
"""
ECHO = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"


def lay(repository: Path, file: str, data: bytes | str, more: str = "", **beside: str) -> Path:
    """A model `m` of one file, and others beside it; its path."""
    folder = repository / "m" / "1"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(data.encode() if isinstance(data, str) else data)
    (repository / "m" / "mmsup.yaml").write_text(TENSORS + more)
    for name, text in beside.items():
        (folder / f"{name}.py").write_text(text)
    return folder / file


def found(repository: Path, kind: str = "faults") -> list[str]:
    result = CliRunner().invoke(check, ["--model-repository", str(repository), "--json"], prog_name="mmsup check")
    return [f"{each['place']}: {each['text']}" for each in json.loads(result.stdout)[kind]]


def add_with_weights(folder: Path) -> Path:
    """`y = x + w` with 4000 bytes of weights in model.onnx.data."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1000], [1.0] * 1000)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1000]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "add", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for each in model.graph.initializer:
        each.raw_data = struct.pack("<1000f", *each.float_data)
        del each.float_data[:]
        external_data_helper.set_external_data(each, "model.onnx.data", 0, 4000)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_an_ensemble_has_no_file_to_be_read() -> None:
    assert found(Path(__file__).parents[4] / "examples" / "composition") == []


def test_a_whole_onnx_file_has_no_faults(tmp_path: Path) -> None:
    add_with_weights(tmp_path / "m" / "1")
    assert found(tmp_path) == []


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_onnx_file_is_a_fault(kept: float, tmp_path: Path) -> None:
    path = add_with_weights(tmp_path / "m" / "1")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    (fault,) = found(tmp_path)
    assert fault.startswith("m/1/model.onnx: ")
    assert "cut short" in fault


def test_missing_weights_of_an_onnx_file_are_a_fault_that_names_their_file(tmp_path: Path) -> None:
    path = add_with_weights(tmp_path / "m" / "1")
    (path.parent / "model.onnx.data").write_bytes(bytes(3999))
    (fault,) = found(tmp_path)
    assert fault.endswith('"model.onnx.data", which is cut short: 3999 of at least 4000 bytes are there')
    (path.parent / "model.onnx.data").unlink()
    assert found(tmp_path) == [
        'm/1/model.onnx: has its weights in "model.onnx.data", which is not beside it: copy that file too'
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (b"<html><body>404</body></html>", "no ONNX file"),
        (b"\x08" + b"\xff" * 20, "no ONNX file"),
        (b"\x3a\xff\xff", "is cut short"),
    ],
)
def test_a_file_that_is_no_model_says_what_it_is(data: bytes, text: str, tmp_path: Path) -> None:
    lay(tmp_path, "model.onnx", data)
    assert any(text in each for each in found(tmp_path))


def test_a_python_model_that_is_sound_has_no_faults(tmp_path: Path) -> None:
    guarded = "try:\n    import not_there\nexcept ImportError:\n    not_there = None\n"
    lay(
        tmp_path,
        "model.py",
        f"import json, numpy\nimport helper\n{guarded}{ECHO}",
        "strings: text",
        helper="import os\n",
    )
    assert found(tmp_path) == []
    assert found(tmp_path, "warnings") == []


def test_a_model_of_tritons_python_backend_is_given_its_module_and_may_import_relatively(tmp_path: Path) -> None:
    source = "from . import helper\nimport triton_python_backend_utils\n\n\nclass TritonPythonModel:\n"
    lay(tmp_path, "model.py", source + "    def execute(self, requests):\n        return []\n", helper="import os\n")
    assert found(tmp_path) == found(tmp_path, "warnings") == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("class Model:\n    def infer(self, inputs)\n", "m/1/model.py: model.py, line 2: expected ':'"),
        (
            "import not_there\n" + ECHO,
            "m/1/model.py:1: imports not_there, which the server's interpreter does not have",
        ),
        ("import helper\n" + ECHO, "m/1/helper.py:2: imports not_there"),
        ("from . import helper\n" + ECHO, "m/1/model.py: model.py, line 1: a relative import finds no package"),
        ("class Modle:\n    pass\n", "m/1/model.py: has no class Model with a method infer(self, inputs)"),
        ("class Model:\n    def predict(self, x):\n        pass\n", "its class Model has no method infer"),
        ("import triton_python_backend_utils\n" + ECHO, f"m/1/model.py: {TRITON_MODULE_TEXT}"),
        ("class TritonPythonModel:\n    pass\n", "its class TritonPythonModel has no method execute(self, requests)"),
    ],
)
def test_what_fails_the_load_of_a_python_model_is_a_fault(source: str, fault: str, tmp_path: Path) -> None:
    lay(tmp_path, "model.py", source, "strings: text", helper="\nimport not_there\n")
    (only,) = found(tmp_path)
    assert fault in only


def test_a_model_that_changes_its_path_is_warned_of_a_missing_import(tmp_path: Path) -> None:
    lay(tmp_path, "model.py", "import sys\nsys.path.insert(0, '/opt')\nimport not_there\n" + ECHO, "strings: text")
    assert found(tmp_path) == []
    assert any("imports not_there" in each for each in found(tmp_path, "warnings"))


def test_a_python_class_with_string_inputs_that_declares_nothing_is_noted(tmp_path: Path) -> None:
    lay(tmp_path, "model.py", ECHO)
    (warning,) = found(tmp_path, "warnings")
    assert "elements of x reach the class as bytes" in warning
    assert "`strings: text`" in warning
    assert found(tmp_path) == []


@pytest.mark.parametrize("word", ["text", "bytes"])
def test_one_that_declares_either_is_not_noted(word: str, tmp_path: Path) -> None:
    lay(tmp_path, "model.py", ECHO, f"strings: {word}")
    assert found(tmp_path, "warnings") == []


def archive(path: Path, *names: str) -> bytes:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, b"x" * 100)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("file", "names", "text"),
    [
        ("model.pt", ("model/data.pkl", "model/data/0"), "is a pickled checkpoint (torch.save)"),
        (
            "model.pt",
            ("m/models/model.json", "m/archive_format"),
            "is a program of torch.export.save: name it model.pt2",
        ),
        ("model.pt2", ("model/constants.pkl", "model/data.pkl"), "is TorchScript: name it model.pt"),
        ("model.pt2", ("model/data.pkl",), "is a pickled checkpoint"),
        ("model.pt", ("notes.txt",), "is no TorchScript"),
    ],
)
def test_an_archive_of_another_kind_says_which(file: str, names: tuple[str, ...], text: str, tmp_path: Path) -> None:
    lay(tmp_path / "models", file, archive(tmp_path / "zip", *names))
    assert any(text in each for each in found(tmp_path / "models"))


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("model.pt", ("model/constants.pkl", "model/data.pkl", "model/code/x.py")),
        ("model.pt2", ("m/models/model.json",)),
    ],
)
def test_a_truncated_archive_is_a_fault(file: str, names: tuple[str, ...], tmp_path: Path) -> None:
    data = archive(tmp_path / "zip", *names)
    path = lay(tmp_path / "models", file, data)
    assert not [each for each in found(tmp_path / "models") if "torch" not in each]
    path.write_bytes(data[:-30])
    assert any("is cut short" in each for each in found(tmp_path / "models"))


def test_an_old_pickle_is_a_checkpoint_too(tmp_path: Path) -> None:
    lay(tmp_path, "model.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert any("is a pickled checkpoint" in each for each in found(tmp_path))


def safetensors(data_bytes: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [25], "data_offsets": [0, 100]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(data_bytes)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (safetensors(99), "is cut short: its tensors have 100 bytes, 99 are there"),
        (safetensors(100)[:20], "is cut short: its header has"),
        (b"\x08\0\0\0\0\0\0\0{broken}", "its header cannot be read"),
        (b"abc", "is no safetensors file"),
    ],
)
def test_a_broken_safetensors_file_is_a_fault(data: bytes, text: str, tmp_path: Path) -> None:
    lay(tmp_path, "model.safetensors", data, model="import torch\n\n\nclass Model(torch.nn.Module):\n    pass\n")
    assert any(text in each for each in found(tmp_path))


def test_the_class_beside_safetensors_is_read_too(tmp_path: Path) -> None:
    lay(tmp_path, "model.safetensors", safetensors(100), model="class Model(")
    assert any("m/1/model.py: model.py, line 1: " in each for each in found(tmp_path))


FORWARD = "class Model:\n    def forward(self, image, mask):\n        return image\n"
PAIR = "class Model:\n    def forward(self, image, mask):\n        return image, mask\n"
READS = """\
class Model:
    def infer(self, inputs):
        x = inputs.get('x')
        return {'sum': x + inputs['y'], 'n': x}
"""


@pytest.mark.parametrize(
    ("file", "source", "inputs", "outputs"),
    [
        ("model.py", READS, ["x", "y"], ["sum", "n"]),
        ("model.safetensors", FORWARD, ["image", "mask"], ["OUTPUT__0"]),
        ("model.safetensors", PAIR, ["image", "mask"], ["OUTPUT__0", "OUTPUT__1"]),
        ("model.pt", "", ["INPUT__0"], ["OUTPUT__0"]),
        ("model.py", "broken(", ["x"], ["y"]),
    ],
)
def test_a_missing_declaration_is_shown_to_be_pasted_with_the_names_of_the_source(
    file: str, source: str, inputs: list[str], outputs: list[str], tmp_path: Path
) -> None:
    path = lay(tmp_path, file, source if file == "model.py" else b"x", **({"model": source} if source else {}))
    config = tmp_path / "m" / "mmsup.yaml"
    config.write_text("trusted: true\n")
    shown = CliRunner().invoke(check, ["--model-repository", str(tmp_path)], prog_name="mmsup check").stdout
    assert f"fault: m/1: {path.name} does not name its inputs and outputs" in shown
    pasted = [line[4:] for line in shown.splitlines() if line.startswith("    ")]
    assert len(pasted) == 4  # a comment and three lines
    config.write_text("trusted: true\n" + "\n".join(pasted) + "\n")
    assert not [each for each in found(tmp_path) if "does not name" in each or "mmsup.yaml" in each]
    spec = scan(Settings((str(tmp_path),), "/x", "/y")).models["m"].specs[0]
    assert [each.name for each in spec.inputs] == inputs
    assert [each.name for each in spec.outputs] == outputs


@pytest.mark.parametrize("source", ["-" * 60000 + "1", "a" + "+a" * 30000, "f" + "()" * 30000, "(" * 60000])
def test_a_source_that_is_nested_too_deeply_is_a_missing_declaration_and_no_end_of_the_server(
    source: str, tmp_path: Path
) -> None:
    lay(tmp_path, "model.py", source)
    (tmp_path / "m" / "mmsup.yaml").write_text("trusted: true\n")
    entry = scan(Settings((str(tmp_path),), "/x", "/y")).models["m"]
    assert 'inputs: [{name: "x", datatype: FP32, shape: [-1]}]' in entry.paste


def test_what_is_declared_already_is_not_to_be_pasted_again(tmp_path: Path) -> None:
    lay(tmp_path, "model.py", READS)
    (tmp_path / "m" / "mmsup.yaml").write_text("inputs: [{name: x, datatype: FP32, shape: [-1]}]\nmax_batch_size: 2\n")
    entry = scan(Settings((str(tmp_path),), "/x", "/y")).models["m"]
    assert [line.strip().partition(":")[0] for line in entry.paste.splitlines()[2:]] == ["outputs"]
    assert entry.paste not in entry.public_reason
    assert "sum" not in entry.public_reason


def interpreter(folder: Path, version: str, *missing: str) -> str:
    """A program that answers as an interpreter of this version without these modules would."""
    path = folder / "python"
    answer = json.dumps({"version": [int(each) for each in version.split(".")], "missing": missing})
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_that_lacks_what_a_worker_needs_is_a_fault_with_what_to_install(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "3.12.1", "msgpack", "numpy")
    lay(tmp_path / "models", "model.py", ECHO, f"strings: text\npython: {python}")
    assert found(tmp_path / "models") == [
        f"m: python: {python} lacks msgpack and numpy, which a worker needs: {python} -m pip install msgpack numpy"
    ]


def test_an_interpreter_that_is_too_old_is_a_fault(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "3.8.2")
    assert Interpreter(python).problem("custom") == f"{python} is Python 3.8; a worker needs 3.11 or newer"


def test_a_program_that_is_no_interpreter_is_a_fault() -> None:
    assert Interpreter("/bin/true").problem("ort") == "/bin/true does not run as a Python interpreter"


def test_an_interpreter_without_the_library_of_the_engine_is_a_fault(tmp_path: Path) -> None:
    python = interpreter(tmp_path, "3.12.1", "onnxruntime")
    assert "lacks onnxruntime" in Interpreter(python).problem("ort")
    assert Interpreter("").problem("custom") == ""
    assert Interpreter(sys.executable).problem("custom") == ""


def test_a_model_file_of_gigabytes_is_not_read_to_be_checked(tmp_path: Path) -> None:
    os.truncate(lay(tmp_path, "model.py", ECHO), 3 << 30)
    (fault,) = found(tmp_path)
    assert "it is larger than 16 MiB; read data from a file of its own" in fault
