"""A Python interpreter in which workers run: whether it has the modules that they and the models import.

It is asked by a small program of ours that imports nothing of the model (ipc/worker_requirements.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from mmsup.ipc import worker_requirements
from mmsup.supervisor.repository.contents.python_source import ImportLine

ANSWER_S: Final = 30.0
_ENGINE_MODULES: Final = {"ort": ("onnxruntime",), "pytorch": ("torch",), "custom": ()}
_EXTRAS: Final = {"onnxruntime": "onnx", "torch": "torch"}
_DISTRIBUTIONS: Final = {
    "Crypto": "pycryptodome", "PIL": "pillow", "attr": "attrs", "bs4": "beautifulsoup4", "cv2": "opencv-python",
    "dateutil": "python-dateutil", "dotenv": "python-dotenv", "faiss": "faiss-cpu", "fitz": "pymupdf",
    "git": "gitpython", "jwt": "pyjwt", "magic": "python-magic", "pkg_resources": "setuptools",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "umap": "umap-learn", "yaml": "pyyaml",
    **{name: name for name in (
        "catboost", "datasets", "diffusers", "einops", "gensim", "jax", "joblib", "keras", "librosa", "lightgbm",
        "lightning", "matplotlib", "mlserver", "nltk", "numba", "numpy", "onnx", "onnxruntime", "pandas", "polars",
        "pyarrow", "pydantic", "requests", "safetensors", "scipy", "sentence_transformers", "sentencepiece",
        "soundfile", "spacy", "statsmodels", "tensorflow", "timm", "tokenizers", "torch", "torchaudio", "torchvision",
        "tqdm", "transformers", "xgboost",
    )},
}  # fmt: skip
"""Modules whose distributions are known. Of any other, the name of the module may be that of a stranger's package."""


class Interpreter:
    def __init__(self, path: str) -> None:
        """`path`: empty for the server's own."""
        self.path = path or sys.executable
        self.name = path or "the server's interpreter"
        self._version: tuple[int, ...] = ()
        self._known: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._failure = ""

    def problem(self, engine: str) -> str:
        """Why no worker with this engine can run here; empty if it can."""
        own = self.name != self.path
        needed = (*(() if own else worker_requirements.WORKER_MODULES), *_ENGINE_MODULES[engine])
        lacking = self._lacking(needed, ())
        if self._failure or not lacking or not own:
            return self._failure or worker_requirements.interpreter_problem(self._version, lacking, self.path)
        extras = ",".join(_EXTRAS[each] for each in lacking)
        return f"{self.name} has no {' and '.join(lacking)}: install mmsup[{extras}]"

    def missing(self, imports: Iterable[ImportLine], paths: Sequence[str]) -> list[ImportLine]:
        """The first import of each module that is not found here, nor in `paths`."""
        first: dict[str, ImportLine] = {}
        for each in imports:
            first.setdefault(each.module, each)
        return [first[name] for name in self._lacking(tuple(first), tuple(paths))]

    def install(self, module: str) -> str:
        """What to do: the command that installs it, or to look for its package where that is not known."""
        known = _DISTRIBUTIONS.get(module)
        if known is None:
            return f"install the package that has it, by {self.path} -m pip install (its name may be another)"
        return f"{self.path} -m pip install {known}"

    def _lacking(self, modules: tuple[str, ...], paths: tuple[str, ...]) -> list[str]:
        unknown = [each for each in modules if (each, paths) not in self._known]
        if unknown or not self._version:
            lacking = self._ask(unknown, paths)
            self._known |= {(each, paths): each not in lacking for each in unknown}
        return [each for each in modules if not self._known[each, paths]]

    def _ask(self, modules: list[str], paths: tuple[str, ...]) -> list[str]:
        request = json.dumps({"modules": modules, "paths": paths})
        command = [self.path, "-I", worker_requirements.__file__, request]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False, cwd="/")
            answer: dict[str, Any] = json.loads(done.stdout)  # JSON
        except (OSError, subprocess.TimeoutExpired, ValueError):
            self._version, self._failure = (0,), f"{self.path} does not run as a Python interpreter"
            return []
        self._version = tuple(answer["version"])
        return list(answer["missing"])
