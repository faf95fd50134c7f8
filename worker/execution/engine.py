"""The interface of an engine, which runs one kind of model, and how an engine is found by its name.

An engine is used by one thread, the worker's loop. It may raise anything: an MmsupError is passed on as it is (a load
that cannot succeed raises `load_failed`, or `config_mismatch` where only other files can mend it; an input that this
model cannot take `bad_request`); every other exception is the model's fault, and execution/model_errors.py words it.

Output buffers. The caller may know before a run where a large output will be sent from: memory that a gateway granted.
It then offers, by name, a writable array over that memory, of exactly the dtype and shape that the output is expected
to have. An engine may write its result there, and says so by returning that very array object; or it returns an array
of its own, and the caller copies. The expectation may be wrong: an engine checks dtype and shape of what it made, never
writes past the array, and returns the same values with buffers and without. After a run that raised, or that returned
its own array, the content of the buffer is undefined.

Four further Protocols are for some engines; `as_batching_engine`, `as_offloading_engine`, `as_streaming_engine` and
`pinned_memory_of` tell for which.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol, cast

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import MLSERVER, TRITON_PYTHON, Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.model_errors import ModelFailure

OutputBuffers = Mapping[str, Array]
NO_BUFFERS: Final[OutputBuffers] = MappingProxyType({})


class Engine(Protocol):
    def load(self, spec: ModelSpec) -> Metadata:
        """Load the artifact onto the device; returns the configured metadata, completed from the artifact."""

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        """Run once; returns at least the wanted outputs. Inputs are read-only views over memory that is reused after
        the run: an engine whose model could write to them or keep them passes copies."""

    def shrink(self) -> None:
        """Free cached device memory, since an allocation failed."""

    def device_bytes(self) -> int:
        """Device memory that the engine holds; 0 on the CPU."""

    def unload(self) -> None:
        """Free the model. Called once, at an orderly end."""


class BatchingEngine(Protocol):
    """An engine that assembles a batch by itself: each job is copied from its own memory to its rows on the device,
    and its part of the result from there to its own buffer. `assembles_batches` is valid after `load`: the same engine
    may do so on a device and not on the CPU."""

    assembles_batches: bool

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> Sequence[dict[str, Array] | ModelFailure]:
        """Run jobs together along their first axis; one result and one set of buffers for each, in order. It raises
        for the batch as a whole. When it returns, the jobs' memory may be reused."""


class CompletingEngine(Protocol):
    """An engine whose model says itself how it is to be run, where its configuration does not."""

    completed_spec: ModelSpec | None
    """Valid after `load`."""


class OffloadingEngine(Protocol):
    """An engine that can move its model out of the memory that it serves from and back, while its process stays. Both
    are called between runs; whatever they raise ends the process. `can_offload` is valid after `load`."""

    can_offload: bool

    def offload(self) -> None:
        """Give back device memory, or whatever else the model can make again. `restore` comes before the next run."""

    def restore(self) -> None:
        """Undo `offload`: answers are the same as before."""


Response = Mapping[str, Array]
"""One response: outputs by name."""
Responses = Response | Iterator[Response] | AsyncIterator[Response] | Awaitable[Response | None] | None
"""What answers one request: one response, many one after the other, one that is awaited, or none."""


class StreamingEngine(Protocol):
    """An engine that may answer a request many times or not at all, or that awaits. `is_streaming` is valid after
    `load`, and `Metadata.decoupled` says whether more or fewer than one response are allowed.

    An Iterator gives its responses in the worker's own thread, one in each turn of its loop, beside those of others. An
    AsyncIterator, and an Awaitable, runs in the worker's event loop for as long as it takes: it is what waits for
    another thread, process or server. Each is closed (`close`, `aclose`, cancelling) as soon as nobody reads any more.
    """

    is_streaming: bool

    def respond(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Responses:
        """Answer a request. The inputs are valid until the last response; outputs are copied when they are given."""


class PinnedMemoryRegistry(Protocol):
    """`pinned_memory` of an engine that copies between shared memory and a device directly, if it was registered."""

    def register(self, view: memoryview, *, writable: bool) -> None:
        """A gateway's extent was mapped, whole, and stays at this address until `unregister`. Never raises."""

    def unregister(self, view: memoryview) -> None:
        """It is about to be unmapped; no run is in progress. Never raises."""


def as_batching_engine(engine: Engine) -> BatchingEngine | None:
    """The engine, if it assembles batches by itself. Valid after `load`."""
    return cast("BatchingEngine", engine) if getattr(engine, "assembles_batches", False) else None


def as_offloading_engine(engine: Engine) -> OffloadingEngine | None:
    """The engine, if its model can be moved out of memory and back. Valid after `load`."""
    return cast("OffloadingEngine", engine) if getattr(engine, "can_offload", False) else None


def as_streaming_engine(engine: Engine) -> StreamingEngine | None:
    """The engine, if its requests are answered by `respond`. Valid after `load`."""
    return cast("StreamingEngine", engine) if getattr(engine, "is_streaming", False) else None


def completed_spec(engine: Engine, spec: ModelSpec) -> ModelSpec:
    """The spec with what the model itself has added to it. Valid after `load`."""
    return cast("ModelSpec | None", getattr(engine, "completed_spec", None)) or spec


def min_buffer_bytes(engine: Engine) -> int | None:
    """The smallest output buffer that this engine writes into; None if it never does. Valid after `load`."""
    return cast("int | None", getattr(engine, "min_buffer_bytes", None))


def pinned_memory_of(engine: Engine) -> PinnedMemoryRegistry | None:
    """Of an engine that gains by registered memory. Valid after `load`."""
    return cast("Any", engine).pinned_memory if getattr(engine, "pins_memory", False) else None


LIBRARIES: Final = {"ort": "onnxruntime", "pytorch": "torch", "custom": "model.py"}
"""What loading an engine's module imports, shown as the progress of a load."""
_ENGINES: Final = {
    "ort": "ort.OrtEngine",
    "pytorch": "pytorch.PytorchEngine",
    "custom": "python_model.PythonModelEngine",
    TRITON_PYTHON: "triton_python.engine.TritonPythonEngine",
    MLSERVER: "mlserver_runtime.MlserverEngine",
}
"""Module and class of each."""
_PACKAGE_EXTRAS: Final = {"onnxruntime": "onnx", "torch": "torch", "safetensors": "torch"}


def open_engine(name: str) -> Engine:
    """The engine of this name, with its library imported; ModelError if it is not installed."""
    assert name in _ENGINES, f"no engine {name!r}"
    module_name, _, class_name = _ENGINES[name].rpartition(".")
    try:
        module = importlib.import_module(f"mmsup.worker.engines.{module_name}")
    except ModuleNotFoundError as error:
        missing = error.name or "a library"
        extra = _PACKAGE_EXTRAS.get(missing.partition(".")[0])
        advice = f": install mmsup[{extra}] there" if extra else ""
        text = f"{missing} is not installed in this worker's interpreter{advice}"
        raise ModelError("load_failed", text) from error
    engine: Engine = getattr(module, class_name)()
    return engine


def bool_parameter(parameters: Mapping[str, str], name: str) -> bool:
    """A model's parameter that is true or false, false if absent; ModelError for another value."""
    value = parameters.get(name, "false").strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise ModelError("config_mismatch", f"parameter '{name}' is neither true nor false")
    return value in ("true", "1")


def int_parameter(parameters: Mapping[str, str], name: str, default: int) -> int:
    """A model's parameter that is a number of at least 1; ModelError for another value."""
    value = parameters.get(name)
    if value is None:
        return default
    if not value.strip().isdecimal() or int(value) < 1:
        raise ModelError("config_mismatch", f"parameter '{name}' is not a number of at least 1")
    return int(value)
