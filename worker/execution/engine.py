"""What an engine is: five verbs over arrays, and how one is found by name.

An engine is used by one thread, the worker's loop. It may raise anything: an MmsupError is passed on as it stands
(a load that cannot be says `load_failed`, an input that this model cannot take `bad_request`), every other exception
is the model's fault and is worded by `worker/execution/model_errors.py`.

Room. The caller may know before a run where a large output will go: memory that a gateway granted. It then offers, by
name, a writable array over that memory, of exactly the dtype and shape that the output will have by all that is known.
An engine may write its result there, and says so by giving back that very array object; or it gives an array of its
own, and the caller copies. What is known may be wrong: an engine checks the dtype and the shape of what it made, never
writes past the array, and answers the same with room and without. After a run that raised, or in which it gave its
own array, the bytes of the room are anybody's guess.

Two more Protocols are for engines that a device gains something by; `gathers` and `pins` tell which have them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol, cast

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import Array

OutputBuffers = Mapping[str, Array]
NO_BUFFERS: Final[OutputBuffers] = MappingProxyType({})


class Engine(Protocol):
    """One loaded model."""

    def load(self, spec: ModelSpec) -> Metadata:
        """Load the artefact onto the device; what the model takes and gives, completed from the artefact."""
        ...

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], room: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        """Run once; at least the outputs named. Inputs are read-only views over memory that is reused afterwards:
        an engine whose model could write to them or keep them gives it copies. `room` is explained above."""
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


class BatchingEngine(Protocol):
    """An engine that makes a batch of several jobs by itself: each goes from its own memory to its rows on the
    device, and its share of the result from there into its own room. `gathers_itself` says whether this one does, as
    it is loaded: the same engine may on a device and may not on the CPU."""

    gathers_itself: bool

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[dict[str, Array]]:
        """Run jobs together along their first axis; one answer and one room for each, in their order. It raises for
        the batch as a whole. All memory of the jobs may be reused when it returns."""
        ...


class PinnedMemoryUser(Protocol):
    """An engine that copies to and from a device straight, where it knows the memory beforehand. `pins_memory` says
    whether this one does, as it is loaded."""

    pins_memory: bool

    def attached(self, view: memoryview, *, writable: bool) -> None:
        """A gateway's extent is mapped, whole and at this address until `detached`. Never raises."""
        ...

    def detached(self, view: memoryview) -> None:
        """It is about to be unmapped: called before the last view goes. No run is under way. Never raises."""
        ...


def as_batching_engine(engine: Engine) -> BatchingEngine | None:
    """The engine, if it makes batches by itself. To be asked after `load`."""
    return cast("BatchingEngine", engine) if getattr(engine, "gathers_itself", False) else None


def min_buffer_bytes(engine: Engine) -> int | None:
    """From how much room on this engine writes into it; None if it never does. To be asked after `load`."""
    return cast("int | None", getattr(engine, "min_buffer_bytes", None))


def as_pinned_memory_user(engine: Engine) -> PinnedMemoryUser | None:
    """The engine, if it wants to know of memory beforehand. To be asked after `load`."""
    return cast("PinnedMemoryUser", engine) if getattr(engine, "pins_memory", False) else None


LIBRARIES: Final = {"ort": "onnxruntime", "pytorch": "torch", "custom": "model.py"}
"""What loading an engine's module brings in, for people who watch a load."""
_MODULES: Final = {"custom": "python_model"}
"""Engines whose module has another name than the engine."""
_PACKAGE_EXTRAS: Final = {"onnxruntime": "onnx", "torch": "torch", "safetensors": "torch"}


def open_engine(name: str) -> Engine:
    """The engine of this name, with its library imported; ModelError if it is not installed."""
    assert name in LIBRARIES, f"no engine {name!r}"
    try:
        module = importlib.import_module(f"mmsup.worker.engines.{_MODULES.get(name, name)}")
    except ModuleNotFoundError as error:
        missing = error.name or "a library"
        extra = _PACKAGE_EXTRAS.get(missing.partition(".")[0])
        advice = f": install mmsup[{extra}] there" if extra else ""
        text = f"{missing} is not installed in this worker's interpreter{advice}"
        raise ModelError("load_failed", text) from error
    engine: Engine = module.make()
    return engine


def bool_parameter(parameters: Mapping[str, str], name: str) -> bool:
    """Whether a model's parameter is switched on; ModelError for a value that is no switch."""
    value = parameters.get(name, "false").strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise ModelError("load_failed", f"parameter '{name}' is '{value}'; it is true or false")
    return value in ("true", "1")


def int_parameter(parameters: Mapping[str, str], name: str, default: int) -> int:
    """A model's parameter that is a number of at least 1; ModelError for anything else."""
    value = parameters.get(name)
    if value is None:
        return default
    if not value.strip().isdecimal() or int(value) < 1:
        raise ModelError("load_failed", f"parameter '{name}' is '{value}'; it is a number of at least 1")
    return int(value)
