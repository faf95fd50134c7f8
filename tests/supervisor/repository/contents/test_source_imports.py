from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmsup.supervisor.repository.contents.source_imports import imported_library


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
    assert imported_library(str(tmp_path / "model.py")) == library


def test_what_is_no_readable_file_has_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    assert imported_library(str(tmp_path / "pipe.py")) == ""
    assert imported_library(str(tmp_path / "none.py")) == ""
