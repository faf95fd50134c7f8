"""What `mmsup check` and a worker both say of Python models."""

from __future__ import annotations

from typing import Final

CLASS_FILE: Final = "model.py"
"""Beside a .safetensors file, which contains only weights, it defines the torch.nn.Module class `Model`."""
MLSERVER_SETTINGS: Final = "model-settings.json"
TRITON_CLASS: Final = "TritonPythonModel"
TRITON_MODULE: Final = "triton_python_backend_utils"
TRITON_COMPLETION: Final = "auto_complete_config"
"""The method of such a class that may declare its tensors."""
TRITON_MODULE_TEXT: Final = (
    f"it imports {TRITON_MODULE}, which only a model with a class {TRITON_CLASS} is given (docs/triton-python.md)"
)
TRITON_UNSEEN_TEXT: Final = (
    f"{{}} has a class {TRITON_CLASS}, but its text does not name it, so that it was taken for another kind of model: "
    f"define it there, or import it by `from … import {TRITON_CLASS}`"
)
