"""What `mmsup check` and a worker both say of Python models."""

from __future__ import annotations

from typing import Final

CLASS_FILE: Final = "model.py"
"""Beside a .safetensors file, which contains only weights, it defines the torch.nn.Module class `Model`."""
TRITON_CLASS: Final = "TritonPythonModel"
TRITON_MODULE: Final = "triton_python_backend_utils"
TRITON_MODEL_TEXT: Final = (
    f"it is written for Triton's Python backend (class {TRITON_CLASS}, {TRITON_MODULE}), which this version does not "
    "run: give it a class Model with load(self, context) and infer(self, inputs), arrays by name in and out "
    "(docs/models.md shows how the two compare)"
)
