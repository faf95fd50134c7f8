from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmsup.ipc.specs import TRITON_PYTHON
from mmsup.supervisor.repository.contents.source_facts import source_facts


@pytest.mark.parametrize(
    ("text", "library"),
    [
        ("import numpy\nimport torch\n", "torch"),
        ("from torch.nn import Linear\n", "torch"),
        ("from transformers import pipeline\n", "torch"),
        ("import onnxruntime as ort\n", "onnxruntime"),
        ("import onnxruntime\nimport torch\n", "torch"),
        ("import torchlike\n", ""),
        ("def load():\n    import torch\n", ""),
        ("# import torch\n", ""),
        ("\N{SNOWMAN}", ""),
    ],
)
def test_the_library_that_a_class_imports_is_seen_in_its_text(tmp_path: Path, text: str, library: str) -> None:
    (tmp_path / "model.py").write_text(text)
    assert source_facts(str(tmp_path / "model.py")).imports == library


@pytest.mark.parametrize(
    ("text", "interface"),
    [
        ("class TritonPythonModel:\n", TRITON_PYTHON),
        ("class TritonPythonModel(Base):\n", TRITON_PYTHON),
        ("from base import Other, TritonPythonModel\n", TRITON_PYTHON),
        ("TritonPythonModel = made()\n", TRITON_PYTHON),
        ("class Model:\n    pass\n\n\nclass TritonPythonModel:\n    pass\n", TRITON_PYTHON),
        ("class Model:\n    # as a TritonPythonModel has it\n    pass\n", ""),
        ("class TritonPythonModelBase:\n", ""),
    ],
)
def test_the_interface_of_a_class_is_seen_in_its_text(tmp_path: Path, text: str, interface: str) -> None:
    (tmp_path / "model.py").write_text(text)
    assert source_facts(str(tmp_path / "model.py")).interface == interface


def test_what_is_no_readable_file_has_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    assert source_facts(str(tmp_path / "pipe.py")).imports == ""
    assert source_facts(str(tmp_path / "none.py")).imports == ""
