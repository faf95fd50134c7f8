"""What an engine is: four verbs over arrays, and how one is found by name.

An engine is used by one thread, the worker's loop. It may raise anything: an MmsupError is passed on as it stands
(a load that cannot be says `load_failed`, an input that this model cannot take `bad_request`), every other exception
is the model's fault and is worded by `worker/failure.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from mmsup.ipc.array import Array
from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec


class Engine(Protocol):
    """One loaded model."""

    def load(self, spec: ModelSpec) -> Metadata:
        """Load the artefact onto the device; what the model takes and gives, completed from the artefact."""
        ...

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        """Run once; at least the outputs named. Inputs are read-only views over memory that is reused afterwards:
        an engine whose model could write to them or keep them gives it copies."""
        ...

    def shrink(self) -> None:
        """Give back cached device memory: an allocation was refused."""
        ...

    def device_bytes(self) -> int:
        """Device memory that the engine holds; 0 on the CPU."""
        ...

    def unload(self) -> None:
        """Let go of the model. Called once, at an orderly end."""
        ...


LIBRARIES: Final = {"ort": "onnxruntime", "pytorch": "torch", "custom": "model.py"}
"""What loading an engine's module brings in, for people who watch a load."""
_EXTRAS: Final = {"onnxruntime": "onnx", "torch": "torch", "safetensors": "torch"}


def open_engine(name: str) -> Engine:
    """The engine of this name, with its library imported; ModelError if it is not installed."""
    assert name in LIBRARIES, f"no engine {name!r}"
    try:
        module = importlib.import_module(f"mmsup.worker.engines.{name}")
    except ModuleNotFoundError as error:
        missing = error.name or "a library"
        extra = _EXTRAS.get(missing.partition(".")[0])
        advice = f": install mmsup[{extra}] there" if extra else ""
        text = f"{missing} is not installed in this worker's interpreter{advice}"
        raise ModelError("load_failed", text) from error
    engine: Engine = module.make()
    return engine


def is_on(parameters: Mapping[str, str], name: str) -> bool:
    """Whether a model's parameter is switched on; ModelError for a value that is no switch."""
    value = parameters.get(name, "false").strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise ModelError("load_failed", f"parameter '{name}' is '{value}'; it is true or false")
    return value in ("true", "1")


def count(parameters: Mapping[str, str], name: str, default: int) -> int:
    """A model's parameter that is a number of at least 1; ModelError for anything else."""
    value = parameters.get(name)
    if value is None:
        return default
    if not value.strip().isdecimal() or int(value) < 1:
        raise ModelError("load_failed", f"parameter '{name}' is '{value}'; it is a number of at least 1")
    return int(value)
