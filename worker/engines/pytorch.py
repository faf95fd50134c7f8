"""Engine for PyTorch models: TorchScript (.pt), torch.export (.pt2), safetensors with a class in `model.py`.

Covers: loading, names and types of tensors, threads, the limit of device memory.
Does not cover: how a batch gets to a device (device/). Nor pickled checkpoints: they are code that looks like data, and
are not loaded.

Inputs are in read-only memory: an in-place operation on a view of it is a SIGSEGV (observed for `add_` and
`ReLU(inplace=True)`). So they are copied, which a batch or a device does anyway, unless the parameter
`read_only_inputs: true` promises that the model does not write to them. Other parameters: `thread_count`, and for a
device `fixed_batch_sizes` (the model sees batches of 1, 2, 4, … rows only, padded with zeros) and `pinned_offload`
(weights that are offloaded lie in pinned memory: quicker to restore, slower to offload, and never swapped).

On a device every run, a single job too, goes through device/batch_transfer.py. Tests run that path on the CPU.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import torch

from mmsup.ipc.errors import ModelError
from mmsup.ipc.python_models import CLASS_FILE
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines.device.batch_transfer import BatchTransfer, TransferOptions
from mmsup.worker.engines.device.chunking import DEFAULT_SIZES
from mmsup.worker.engines.device.cuda_driver import open_driver
from mmsup.worker.engines.device.pinned_memory import PinnedMemory
from mmsup.worker.engines.device.torch_streams import DATATYPES, TorchDevice, from_numpy
from mmsup.worker.engines.gpu_memory_limit import enforce_gpu_memory
from mmsup.worker.engines.python_model import forget_module, load_module
from mmsup.worker.engines.tensor_metadata import configured_metadata, merge_metadata
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers, bool_parameter, int_parameter

_INDEXED: Final = re.compile(r".+__(\d+)")
"""Triton's convention for models whose tensors have no names: `INPUT__0`."""

cuda: Any = torch.cuda  # its types have gaps, as have those of jit
jit: Any = torch.jit
ModuleCall = Callable[..., Any]  # arguments and result depend on the model


@dataclass(frozen=True, slots=True)
class LoadedModule:
    run: ModuleCall
    metadata: Metadata
    arguments: tuple[str, ...]
    """The argument names of the call in order, where they are known."""
    by_keyword: bool = True
    """Whether the call takes them by those names; a torch.export graph does not."""
    pins_weights: bool = False
    """Weights that are offloaded lie in pinned memory."""


class PytorchEngine:
    def __init__(self, *, use_streams: bool = False) -> None:
        """`use_streams`: transfer batches as to a device even on the CPU, for tests."""
        self.assembles_batches = False
        self.pins_memory = False
        self.min_buffer_bytes: int | None = None
        self._loaded: LoadedModule | None = None
        self._device = torch.device("cpu")
        self._copies = True
        self._folder = ""
        self._inputs: tuple[str, ...] = ()
        self._outputs: tuple[str, ...] = ()
        self._use_streams = use_streams
        self.pinned_memory = PinnedMemory(None)
        self._transfer: BatchTransfer | None = None

    def load(self, spec: ModelSpec) -> Metadata:
        _set_threads(spec)
        self._copies = not bool_parameter(spec.parameters, "read_only_inputs")
        if spec.device != "cpu":
            self._device = _device(spec)
        self._folder = spec.directory
        path = os.path.join(spec.directory, spec.artefact)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit announces its retirement at each load
            loaded = _load_artifact(spec, path, self._device)
        declared = [each.name for each in loaded.metadata.inputs]
        takes_names = loaded.by_keyword and set(declared) <= set(loaded.arguments)
        pins_weights = bool_parameter(spec.parameters, "pinned_offload")
        self._loaded = replace(loaded, by_keyword=takes_names, pins_weights=pins_weights)
        self._inputs = _positional_order(declared, loaded.arguments)
        self._outputs = _positional_order([each.name for each in loaded.metadata.outputs], ())
        if self._use_streams or self._device.type == "cuda":
            self._open_transfer(spec, loaded.metadata.max_batch_size)
        return loaded.metadata

    def _open_transfer(self, spec: ModelSpec, max_rows: int) -> None:
        self.pins_memory = self._device.type == "cuda"
        self.pinned_memory = PinnedMemory(open_driver() if self.pins_memory else None)
        ways = TransferOptions(max_rows, bool_parameter(spec.parameters, "fixed_batch_sizes"), self._copies)
        self._transfer = BatchTransfer(TorchDevice(self._device), ways, self.pinned_memory.is_registered)
        self.assembles_batches = max_rows > 0
        self.min_buffer_bytes = DEFAULT_SIZES.direct

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        """Call the module. On the CPU it allocates its outputs, and `buffers` are not used."""
        if self._transfer is not None:
            return self.run_batch([inputs], wanted, [buffers])[0]
        with torch.inference_mode():
            results = self._call({name: self._tensor(inputs[name]) for name in self._inputs if name in inputs})
            return {name: _to_array(results[name]) for name in wanted if name in results}

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[dict[str, Array]]:
        """Call the module for jobs together, copied to the device and back."""
        assert self._transfer is not None, "no transfer to a device"
        ordered = [{name: job[name] for name in self._inputs if name in job} for job in jobs]
        with torch.inference_mode():
            return self._transfer.run(ordered, wanted, buffers, self._call)

    def _call(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loaded = self._loaded
        assert loaded is not None, "infer before load"
        return self._named_outputs(loaded.run(**tensors) if loaded.by_keyword else loaded.run(*tensors.values()))

    def _tensor(self, array: Array) -> torch.Tensor:
        if array.dtype == NUMPY["BF16"]:
            return self._tensor(array.view(np.int16)).view(torch.bfloat16)
        return from_numpy(array.copy() if self._copies else array)

    def _named_outputs(self, result: Any) -> dict[str, torch.Tensor]:  # whatever the module returned
        whole: Any = result
        if isinstance(result, Mapping):
            return {str(name): _as_tensor(value) for name, value in whole.items()}
        values = cast("Sequence[Any]", result if isinstance(result, (list, tuple)) else [result])
        if len(values) < len(self._outputs):
            raise ValueError(f"the module gave {len(values)} tensors, {len(self._outputs)} outputs are declared")
        return {name: _as_tensor(value) for name, value in zip(self._outputs, values, strict=False)}

    def shrink(self) -> None:
        if self._transfer is not None:
            self._transfer.shrink()
        if self._device.type == "cuda":
            cuda.empty_cache()

    def device_bytes(self) -> int:
        return int(cuda.memory_reserved()) if self._device.type == "cuda" else 0

    @property
    def can_offload(self) -> bool:
        """On the CPU there is nothing to be gained."""
        return bool(self._device.type == "cuda")

    def offload(self) -> None:
        """Move the weights to host memory, and free what the allocator has cached on the device."""
        assert self._loaded is not None, "offload before load"
        module: Any = self._loaded.run  # all kinds of module have these methods
        module.to("cpu")
        if self._loaded.pins_weights:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = tensor.data.pin_memory()
        self.shrink()

    def restore(self) -> None:
        assert self._loaded is not None, "restore before load"
        module: Any = self._loaded.run
        module.to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            cuda.synchronize()

    def unload(self) -> None:
        self._loaded = None
        forget_module(self._folder)
        self.pinned_memory.clear()
        self.shrink()


def _set_threads(spec: ModelSpec) -> None:
    torch.set_num_threads(int_parameter(spec.parameters, "thread_count", len(os.sched_getaffinity(0))))
    # torch warns at each new call site about read-only inputs, which are intended.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


def _device(spec: ModelSpec) -> torch.device:
    """The one device that this process sees, with the model's memory limit set."""
    if not cuda.is_available():
        text = f"model '{spec.name}' is to run on '{spec.device}', but torch finds no CUDA device here"
        raise ModelError("load_failed", text)
    enforce_gpu_memory(spec)
    return torch.device("cuda:0")


def _load_artifact(spec: ModelSpec, path: str, device: torch.device) -> LoadedModule:
    if path.endswith(".pt2"):
        return _load_exported(spec, path, device)
    if path.endswith(".safetensors"):
        return _load_safetensors(spec, path, device)
    return _load_torchscript(spec, path, device)


def _load_torchscript(spec: ModelSpec, path: str, device: torch.device) -> LoadedModule:
    try:
        module = jit.load(path, map_location=device)
    except RuntimeError as error:
        if "constants.pkl" not in str(error):
            raise
        text = f"model '{spec.name}': {spec.artefact} is no TorchScript; a pickled checkpoint is not loaded"
        raise ModelError(
            "load_failed", f"{text}: export it by torch.jit or torch.export, or use safetensors"
        ) from error
    module.eval()
    arguments = tuple(each.name for each in module.forward.schema.arguments[1:])
    metadata = configured_metadata(spec, f"TorchScript ({spec.artefact})", arguments)
    return LoadedModule(module, metadata, arguments)


def _load_safetensors(spec: ModelSpec, path: str, device: torch.device) -> LoadedModule:
    """Weights without code, loaded into the class that the operator wrote for them."""
    import safetensors.torch as safetensors  # noqa: PLC0415 - only this kind of model needs the library

    code = os.path.join(spec.directory, CLASS_FILE)
    if not os.path.exists(code):
        text = f"model '{spec.name}': {spec.artefact} needs a model.py beside it, with a class Model(torch.nn.Module)"
        raise ModelError("load_failed", text)
    kind = getattr(load_module(code), "Model", None)
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        text = f"model '{spec.name}': model.py has no class Model that is a torch.nn.Module"
        raise ModelError("load_failed", text)
    module: torch.nn.Module = kind()
    weights: dict[str, torch.Tensor] = cast("Any", safetensors).load_file(path)
    module.load_state_dict(weights)
    module.to(device).eval()
    taken = inspect.signature(module.forward).parameters.values()
    is_open = any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in taken)
    arguments = () if is_open else tuple(each.name for each in taken)
    return LoadedModule(module, configured_metadata(spec, spec.artefact, arguments), arguments)


def _load_exported(spec: ModelSpec, path: str, device: torch.device) -> LoadedModule:
    """A graph whose signature holds names, types and shapes."""
    program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - not needed on the CPU

        program = move_to_device_pass(program, device)
    signature = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [_tensor_spec(spec, name, values.get(name)) for name in map(str, signature.user_inputs)]
    names = [str(name) for name in signature.user_outputs]
    public_names = _output_names(spec, program, names)
    outputs = [_tensor_spec(spec, public, values.get(name)) for public, name in zip(public_names, names, strict=True)]
    arguments = tuple(each.name for each in inputs)
    configured = [each.name for each in spec.inputs]
    if set(configured) != set(arguments) and len(configured) == len(arguments):
        arguments = _positional_order(configured, ())  # other names are configured: matched by position
        inputs = [TensorSpec(name, each.datatype, each.shape) for name, each in zip(arguments, inputs, strict=True)]
    return LoadedModule(program.module(), merge_metadata(spec, inputs, outputs), arguments, by_keyword=False)


def _output_names(spec: ModelSpec, program: torch.export.ExportedProgram, names: Sequence[str]) -> Sequence[str]:
    """The public names of a graph's outputs: the keys of its dict, else the configured names, else their numbers."""
    out = program.call_spec.out_spec
    keys = [str(key) for key in out.context] if out is not None and out.type is dict else []
    if len(keys) == len(names):
        return keys
    configured = _positional_order([each.name for each in spec.outputs], ())
    rest = [f"OUTPUT__{index}" for index in range(len(configured), len(names))]
    return [*configured, *rest][: len(names)]


def _tensor_spec(spec: ModelSpec, name: str, value: Any) -> TensorSpec:  # a fake tensor, if the argument is one
    if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
        raise ModelError(
            "load_failed", f"model '{spec.name}': '{name}' of its signature is no tensor that can be served"
        )
    sizes = cast("Sequence[object]", value.shape)  # a size that is not fixed is a symbol
    shape = tuple(size if isinstance(size, int) else -1 for size in sizes)
    return TensorSpec(name, DATATYPES[value.dtype], shape)


def _positional_order(declared: Sequence[str], arguments: Sequence[str]) -> tuple[str, ...]:
    """The names in the module's order: that of its arguments, else of Triton's `NAME__index`, else as declared."""
    if arguments and set(declared) <= set(arguments):
        return tuple(name for name in arguments if name in declared)
    found = [_INDEXED.fullmatch(name) for name in declared]
    indices = [int(match[1]) for match in found if match]
    if sorted(indices) == list(range(len(declared))):
        return tuple(name for _, name in sorted(zip(indices, declared, strict=True)))
    return tuple(declared)


def _as_tensor(value: Any) -> torch.Tensor:  # whatever the module returned
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"the module gave a {type(value).__name__} instead of a tensor")
    return value


def _to_array(tensor: torch.Tensor) -> Array:
    host = tensor.detach().cpu().contiguous()
    if host.dtype is torch.bfloat16:
        bits: Array = host.view(torch.int16).numpy()
        return bits.view(NUMPY["BF16"])
    array: Array = host.resolve_neg().resolve_conj().numpy()
    return array
