from __future__ import annotations

import pytest

from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.repository.artifact import ENGINES, Artifact, select_artifact


@pytest.mark.parametrize(
    ("files", "engine", "name", "expected"),
    [
        ("model.onnx labels.txt", "", "", Artifact("model.onnx", "ort")),
        ("model.pt", "", "", Artifact("model.pt", "pytorch")),
        ("model.pt2", "", "", Artifact("model.pt2", "pytorch")),
        ("model.py", "", "", Artifact("model.py", "custom")),
        ("model.safetensors model.py", "", "", Artifact("model.safetensors", "pytorch")),
        ("model.safetensors model.py", "pytorch", "", Artifact("model.safetensors", "pytorch")),
        ("model.safetensors model.py", "custom", "", Artifact("model.py", "custom")),
        ("model.onnx model.py", "custom", "", Artifact("model.py", "custom")),
        ("model.onnx model.py", "ort", "", Artifact("model.onnx", "ort")),
        ("model.onnx small.onnx", "", "small.onnx", Artifact("small.onnx", "ort")),
        ("model.pt model.pt2", "pytorch", "model.pt", Artifact("model.pt", "pytorch")),
        ("net.pth", "", "net.pth", Artifact("net.pth", "pytorch")),
        ("model.onnx/model.onnx", "", "", Artifact("model.onnx/model.onnx", "ort")),
        ("big.onnx/big.onnx", "ort", "big.onnx", Artifact("big.onnx/big.onnx", "ort")),
    ],
)
def test_the_only_matching_file_is_selected(files: str, engine: str, name: str, expected: Artifact) -> None:
    assert select_artifact(files.split(), engine, name) == expected


@pytest.mark.parametrize(
    ("files", "engine", "name", "words"),
    [
        ("", "", "", "holds no model.onnx, model.pt2, model.pt, model.safetensors, model.py"),
        ("README", "ort", "", "holds no model.onnx"),
        ("resnet.onnx", "", "", "there is resnet.onnx: name it in default_model_filename"),
        ("model.py", "pytorch", "", "; there is model.py, which is for another backend"),
        ("model.onnx model.pt", "", "", "holds model.onnx and model.pt: name one by backend"),
        ("model.pt model.pt2", "pytorch", "", "name one"),
        ("model.onnx", "", "small.onnx", '"small.onnx", its default_model_filename, is not there'),
        ("model.onnx", "pytorch", "model.onnx", "no file that pytorch loads; it would end in .pt, .pth, .pt2"),
        ("model.bin", "", "model.bin", "no file that any engine loads"),
        ("model.safetensors", "", "", "model.py with a class Model is missing"),
        ("model.safetensors", "pytorch", "", "model.py with a class Model is missing"),
    ],
)
def test_no_or_several_matching_files_are_an_error_with_a_hint(files: str, engine: str, name: str, words: str) -> None:
    with pytest.raises(InvalidValue) as wrong:
        select_artifact(files.split(), engine, name)
    assert words in str(wrong.value)


def test_weights_with_a_class_need_trust_and_only_some_files_declare_their_tensors() -> None:
    made = {
        file: select_artifact([file, "model.py"], engine)
        for engine, kind in ENGINES.items()
        for file in kind.default_names
    }
    assert [file for file, each in made.items() if each.needs_trust] == ["model.safetensors"]
    assert [file for file, each in made.items() if each.declares_tensors] == ["model.onnx", "model.pt2"]
    assert made["model.pt"].platform == "pytorch_libtorch"
