"""Engine for ONNX models, by onnxruntime: on the CPU, or on CUDA (TensorRT on request).

Covers: the session and its options, conversion between types of ONNX and of the protocol, strings, BF16.
Does not cover: batching (batching/batcher.py), runs into given memory (ort_io_binding.py). A model is loaded by its
path only: loaded from bytes, its references to external data would be checked against the working directory.

Parameters of a model: `intra_op_thread_count`, `inter_op_thread_count` (Triton's names), `allow_spinning`, `tensorrt`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnxruntime

from mmsup.ipc.errors import CallerError, ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import size_bytes
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines import ort_io_binding
from mmsup.worker.engines.device.cuda_driver import open_driver
from mmsup.worker.engines.device.pinned_memory import PinnedMemory
from mmsup.worker.engines.gpu_memory_limit import arena_limit
from mmsup.worker.engines.onnx_file import OnnxFacts, fits, read_facts
from mmsup.worker.engines.ort_sequences import SequenceTensors, element_of_maps, element_of_sequence
from mmsup.worker.engines.tensor_metadata import merge_metadata
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, bool_parameter, int_parameter

ort: Any = onnxruntime  # it ships no types

DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
BFLOAT16: Final = 16
"""onnx.TensorProto.BFLOAT16."""
LOG_ERRORS_ONLY: Final = 3
"""Log severity: warnings about absent devices, or about a graph's style, help no user here."""


def provider_options(
    device: str, gpu_memory_bytes: int | None, *, tensorrt: bool, stream: int = 0
) -> list[tuple[str, dict[str, str]]]:
    """Execution providers in order of preference, with their options. `stream`: the caller's CUDA stream to compute on,
    so that copies and runs are ordered without blocking the host. Pure."""
    if device == "cpu":
        return [("CPUExecutionProvider", {})]
    own = {"user_compute_stream": str(stream)} if stream else {}
    cuda = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested", **own}
    chosen: list[tuple[str, dict[str, str]]] = []
    if gpu_memory_bytes:
        cuda["gpu_mem_limit"] = str(arena_limit(gpu_memory_bytes))
    if tensorrt:
        options = {"device_id": "0", **own}
        if gpu_memory_bytes:
            options["trt_max_workspace_size"] = cuda["gpu_mem_limit"]
        chosen.append(("TensorrtExecutionProvider", options))
    return [*chosen, ("CUDAExecutionProvider", cuda), ("CPUExecutionProvider", {})]


def bindable_outputs(metadata: Metadata) -> set[str]:
    """The outputs that may be written into a given buffer: none if the model has strings or BF16 anywhere, which are
    passed by value; not those that are inputs too, which the graph passes through. Pure."""
    datatypes = {each.datatype for each in (*metadata.inputs, *metadata.outputs)}
    if not datatypes <= ort_io_binding.ELEMENT_TYPES.keys():
        return set()
    return {each.name for each in metadata.outputs} - {each.name for each in metadata.inputs}


class OrtEngine:
    min_buffer_bytes = ort_io_binding.MIN_BIND_BYTES

    def __init__(self) -> None:
        self.pins_memory = False
        self.pinned_memory = PinnedMemory(None)
        self._session: Any = None  # onnxruntime ships no types
        self._inputs: dict[str, str] = {}
        self._string_inputs: tuple[str, ...] = ()
        self._uses_ort_values = False
        self._sequences: SequenceTensors | None = None
        self._bindings: ort_io_binding.IoBindings | None = None
        self._bindable: set[str] = set()
        """Outputs that are written into their buffer. One that was not as predicted is never bound again: a graph whose
        shapes depend on its data would be run twice each time."""

    def load(self, spec: ModelSpec) -> Metadata:
        """Create the session with the providers for the device, and with no others."""
        ort.set_default_logger_severity(LOG_ERRORS_ONLY)
        providers = provider_options(
            spec.device, spec.gpu_memory_bytes, tensorrt=bool_parameter(spec.parameters, "tensorrt")
        )
        absent = [name for name, _ in providers if name not in ort.get_available_providers()]
        if absent:
            text = f"model '{spec.name}' is to run on '{spec.device}', but the onnxruntime here has no {absent[0]}"
            raise ModelError("load_failed", f"{text}: install mmsup[onnx-gpu] instead of mmsup[onnx]")
        path = os.path.join(spec.directory, spec.artefact)
        self._session = ort.InferenceSession(path, sess_options=_session_options(spec), providers=providers)
        if self._session.get_providers()[0] != providers[0][0]:
            text = f"model '{spec.name}' is to run on '{spec.device}', but {providers[0][0]} did not start"
            raise ModelError("load_failed", text)
        self._session.disable_fallback()
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        facts = read_facts(path) if any(each.type.startswith("seq(") for each in nodes) else OnnxFacts()
        metadata = self._metadata(spec, facts)
        self._inputs = {each.name: each.datatype for each in metadata.inputs}
        self._string_inputs = tuple(name for name, datatype in self._inputs.items() if datatype == "BYTES")
        datatypes = {*self._inputs.values(), *(each.datatype for each in metadata.outputs)}
        self._uses_ort_values = "BF16" in datatypes
        if self._uses_ort_values and ("BYTES" in datatypes or self._sequences is not None):
            text = "has BF16 and strings or sequences, which onnxruntime's Python interface cannot pass together"
            raise ModelError("load_failed", f"model '{spec.name}' {text}")
        self.pins_memory = spec.device != "cpu"
        self.pinned_memory = PinnedMemory(open_driver() if self.pins_memory else None)
        self._bindings = ort_io_binding.IoBindings(self._session, "cuda" if self.pins_memory else "cpu")
        self._bindable = bindable_outputs(metadata) if self._sequences is None else set()
        return metadata

    def _metadata(self, spec: ModelSpec, facts: OnnxFacts) -> Metadata:
        """Names, types and shapes; also how sequences become tensors."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        configured = {each.name for each in spec.inputs}
        # An initializer that is an input too has a default: it is an input only where the configuration names it.
        defaults = [each for each in self._session.get_overridable_initializers() if each.name in configured]
        present = _tensor_specs(spec, "input", inputs, configured, facts)
        present += [replace(each, optional=True) for each in _tensor_specs(spec, "input", defaults, configured, facts)]
        made = _tensor_specs(spec, "output", outputs, {each.name for each in spec.outputs}, facts)
        metadata = merge_metadata(spec, present, made)
        self._sequences = _sequence_tensors(inputs, outputs, metadata, facts)
        if self._sequences is None:
            return metadata
        if spec.max_batch_size and (self._sequences.inputs or self._sequences.sequences):
            text = f"model '{spec.name}' has a sequence, which has no batch axis: set max_batch_size to 0"
            raise ModelError("load_failed", text)
        labels = {name: tuple(map(str, facts.labels[name])) for name in self._sequences.maps if name in facts.labels}
        return replace(metadata, labels={name: each for name, each in labels.items() if fits(each)})

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        """Run the part of the graph that the outputs need. onnxruntime only reads its inputs, and keeps none."""
        key = ort_io_binding.binding_key(inputs, wanted, buffers, self._bindable) if buffers else None
        if key is None:
            return self._run_unbound(inputs, wanted)
        return self._run_bound(key, buffers) or self._run_after_refusal(key, inputs, buffers)

    def _run_bound(self, key: ort_io_binding.BindingKey, buffers: OutputBuffers) -> dict[str, Array] | None:
        """The outputs, in their buffers; None if the session refuses."""
        assert self._bindings is not None, "infer before load"
        try:
            return self._bindings.run(key, buffers)
        except RuntimeError:  # onnxruntime raises nothing else here: a run without binding shows the reason
            return None

    def _run_after_refusal(
        self, key: ort_io_binding.BindingKey, inputs: Mapping[str, Array], buffers: OutputBuffers
    ) -> Mapping[str, Array]:
        """Run without binding after a run with it failed. If this fails too, the buffers were not the reason."""
        names = [output[0] for output in key[1]]
        made = self._run_unbound(inputs, names)
        self._bindable -= ort_io_binding.mismatched_outputs(made, buffers) or {*names}
        return made

    def _run_unbound(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Mapping[str, Array]:
        if self._uses_ort_values:
            feeds = {name: _ort_value(self._inputs[name], array) for name, array in inputs.items()}
            results = self._session.run_with_ort_values(list(outputs), feeds)
            return {name: _array_of(value) for name, value in zip(outputs, results, strict=True)}
        if self._string_inputs:
            inputs = {
                name: _decode_strings(name, array) if name in self._string_inputs else array
                for name, array in inputs.items()
            }
        if self._sequences is None:
            return dict(zip(outputs, self._session.run(outputs, inputs), strict=True))
        results = self._session.run(outputs, self._sequences.feeds(inputs))
        return self._sequences.tensors(dict(zip(outputs, results, strict=True)))

    def shrink(self) -> None:
        """Nothing: onnxruntime frees arena memory by a run option only, and a failed run took none."""

    def device_bytes(self) -> int:
        """0: onnxruntime does not report it."""
        return 0

    def unload(self) -> None:
        self.pinned_memory.clear()
        self._bindings = None
        self._session = None


def _session_options(spec: ModelSpec) -> Any:  # onnxruntime ships no types
    options: Any = ort.SessionOptions()
    cores = len(os.sched_getaffinity(0))
    options.intra_op_num_threads = int_parameter(spec.parameters, "intra_op_thread_count", cores)
    options.inter_op_num_threads = int_parameter(spec.parameters, "inter_op_thread_count", 1)
    options.log_severity_level = LOG_ERRORS_ONLY
    options.enable_mem_reuse = not has_few_shapes(spec)
    # By default idle threads spin after each run, which takes the cores from every other model of the machine.
    spins = "1" if bool_parameter(spec.parameters, "allow_spinning") else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spins)
    options.add_session_config_entry("session.inter_op.allow_spinning", spins)
    return options


def has_few_shapes(spec: ModelSpec) -> bool:
    """Whether the inputs of a model on the CPU can only have as many shapes as there are batch sizes. Pure.

    Then each run takes its memory by the plan that onnxruntime has made for these shapes, where no intermediate result
    looks for memory of an earlier one. That saves 0.15 microseconds a node: 0.50 ms instead of 0.69 for one row of a
    thousand thin layers, 0.90 instead of 1.10 for 16 (onnxruntime 1.32, 2-core VM). Graphs of few large nodes take as
    long and as much memory as before. But such a plan takes 43 KB for a thousand layers, and each shape has its own."""
    return spec.device == "cpu" and bool(spec.inputs) and all(-1 not in each.shape for each in spec.inputs)


def _tensor_specs(
    spec: ModelSpec, kind: str, nodes: Sequence[Any], configured: set[str], facts: OnnxFacts
) -> list[TensorSpec]:
    """The tensors of a graph. One of a type that the protocol lacks is an error, unless it is an output that is not
    configured."""
    found: list[TensorSpec] = []
    for node in nodes:
        if node.type in DATATYPES:
            shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
            found.append(TensorSpec(node.name, DATATYPES[node.type], shape))
        elif DATATYPES.get(element := element_of_sequence(node.type)):
            inner = facts.element_shapes.get(node.name)
            found.append(TensorSpec(node.name, DATATYPES[element], () if inner is None else (-1, *inner)))
        elif kind == "output" and (element := element_of_maps(node.type)):
            columns = len(facts.labels.get(node.name, ())) or -1
            found.append(TensorSpec(node.name, DATATYPES[element], (-1, columns)))
        elif kind == "input" or not configured or node.name in configured:
            text = f"model '{spec.name}': {kind} '{node.name}' is a {node.type}, which is no tensor that can be served"
            advice = "; name the outputs to serve in config.pbtxt, or export without it" if kind == "output" else ""
            raise ModelError("load_failed", text + advice)
    return found


def _sequence_tensors(
    inputs: Sequence[Any], outputs: Sequence[Any], metadata: Metadata, facts: OnnxFacts
) -> SequenceTensors | None:
    """How the sequences of a graph become tensors; None if it has none."""
    dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
    served = [each for each in outputs if each.name in dtypes]
    taken = frozenset(each.name for each in inputs if element_of_sequence(each.type))
    maps: dict[str, tuple[Sequence[Any], np.dtype[Any]]] = {
        each.name: (facts.labels.get(each.name, ()), dtypes[each.name]) for each in served if element_of_maps(each.type)
    }
    sequences = {
        each.name: (facts.element_shapes.get(each.name, ()), dtypes[each.name])
        for each in served
        if element_of_sequence(each.type)
    }
    return SequenceTensors(taken, maps, sequences) if taken or maps or sequences else None


def _ort_value(datatype: str, array: Array) -> Any:  # an OrtValue
    array = np.asarray(array, order="C")  # `ascontiguousarray` would make rank 0 rank 1
    if datatype == "BF16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _decode_strings(name: str, array: Array) -> Array:
    """Strings of ONNX are UTF-8; given bytes objects, onnxruntime would take their Python notation."""
    text = np.empty(array.size, dtype=np.object_)
    try:
        text[:] = [each.decode() for each in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise CallerError(
            "bad_request", f"input '{name}' holds bytes that are not UTF-8; this model takes text"
        ) from error
    return text.reshape(array.shape)


def _array_of(value: Any) -> Array:  # an OrtValue
    if value.element_type() != BFLOAT16:
        array: Array = value.numpy()
        return array
    # OrtValue.numpy() refuses BF16 (seen with onnxruntime 1.32), so its bytes are read by their address.
    shape = value.shape()
    size = size_bytes("BF16", shape) or 0
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, dtype=NUMPY["BF16"]).reshape(shape)
