"""Selects the file of a version's folder that is the model, and the engine that loads it, by file names alone.

Nothing is opened here; the worker reads the file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from mmsup.ipc.python_models import CLASS_FILE
from mmsup.supervisor.config.config_error import InvalidValue, displayed


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The name of an engine in Triton's `platform`, the file suffixes that it loads, and default file names."""

    platform: str
    suffixes: tuple[str, ...]
    default_names: tuple[str, ...]


ENGINES: Final = {
    "ort": EngineFiles("onnxruntime_onnx", (".onnx",), ("model.onnx",)),
    "pytorch": EngineFiles(
        "pytorch_libtorch", (".pt", ".pth", ".pt2", ".safetensors"), ("model.pt2", "model.pt", "model.safetensors")
    ),
    "custom": EngineFiles("python", (".py",), ("model.py",)),
}


@dataclass(frozen=True, slots=True)
class Artifact:
    """The model's file, relative to the version's folder, and its engine."""

    file: str
    engine: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.file).suffix

    @property
    def platform(self) -> str:
        return ENGINES[self.engine].platform

    @property
    def needs_trust(self) -> bool:
        """It consists of weights and a class: code of the repository runs in the worker."""
        return self.suffix == ".safetensors"

    @property
    def declares_tensors(self) -> bool:
        """The file itself names its inputs and outputs."""
        return self.suffix in (".onnx", ".pt2")


def select_artifact(files: Collection[str], engine: str = "", name: str = "") -> Artifact:
    """The artifact among these files, given `engine` and `name` from the configuration, if any. InvalidValue unless
    there is exactly one."""
    found = _present(files, [name] if name else _names(engine))
    if name and not found:
        raise InvalidValue(f"{displayed(name)}, its default_model_filename, is not there")
    if not found:
        others = [each for each in sorted(files) if engine_of(each)]
        other = engine and others and engine_of(others[0]) != engine  # a name would not help
        what = "which is for another backend" if other else "name it in default_model_filename"
        hint = f"; there is {others[0]}{', ' if other else ': '}{what}" if others else ""
        raise InvalidValue(f"holds no {', '.join(_names(engine))}{hint}")
    if len(found) > 1:
        raise InvalidValue(f"holds {' and '.join(found)}: name one by backend or default_model_filename")
    loader = engine_of(found[0])
    if not loader or (engine and engine != loader):
        endings = ", ".join(suffix for each in ENGINES for suffix in ENGINES[each].suffixes if engine in ("", each))
        raise InvalidValue(
            f"{displayed(found[0])} is no file that {engine or 'any engine'} loads; it would end in {endings}"
        )
    if loader == "pytorch" and found[0].endswith(".safetensors") and CLASS_FILE not in files:
        raise InvalidValue(f"{found[0]} contains only weights: {CLASS_FILE} with a class Model is missing beside it")
    return Artifact(found[0], loader)


def _names(engine: str) -> list[str]:
    return [each for name, kind in ENGINES.items() if engine in ("", name) for each in kind.default_names]


def _present(files: Collection[str], names: list[str]) -> list[str]:
    """Those of the names that exist, also as a folder `model.onnx` with a file of that name."""
    found = [file for name in names for file in (name, f"{name}/{name}") if file in files]
    if "model.safetensors" in found and CLASS_FILE in found:
        found.remove(CLASS_FILE)  # the class for those weights, not a model itself
    return found


def engine_of(file: str) -> str:
    """Empty if none loads it."""
    suffix = PurePosixPath(file).suffix
    return next((name for name, kind in ENGINES.items() if suffix in kind.suffixes), "")
