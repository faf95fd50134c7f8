"""Runs an ONNX session between given addresses (IO binding): its outputs are written where they will be sent from.

`binding_key` decides, and is pure; `IoBindings` runs, with the session's own objects. A binding is a list of addresses,
so it is valid for every run between the same addresses: a gateway gives the slot that was freed last to the next
request, and the same few recur. A binding reads and writes only during its run, and its key holds all its addresses: a
cached one whose extent was unmapped is never used again, or it is valid again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from mmsup.ipc.tensors.numpy_arrays import DATATYPE, Array
from mmsup.worker.execution.engine import OutputBuffers

MIN_BIND_BYTES: Final = 128 << 10
"""From this much output on. Microseconds of Relu by onnxruntime 1.32 on one core (2-core VM, kernel 6.18), for run and
copy into the slot / a new binding / a cached one:

    64 KiB 14.9 / 21.9 / 5.4    128 KiB 20.0 / 25.2 / 7.1    256 KiB 32.3 / 31.4 / 12.1
    602 KB 54.8 / 42.6 / 21.9   12.6 MB 1,599 / 631 / 603

Without output buffers a binding gains nothing at any size (28.8 against 12.7 for 128 KiB): `run` takes inputs without
a copy, and returns its outputs without one."""
CACHE_LIMIT: Final = 32
"""As many pairs of slots are in use as requests are in flight; a cached binding takes a few hundred bytes."""
ELEMENT_TYPES: Final = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7,
    "BOOL": 9, "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13,
}  # fmt: skip
"""onnx.TensorProto.DataType. Not BYTES, which has no address, and BF16, which numpy cannot return."""

BoundTensor = tuple[str, str, int, tuple[int, ...], int]
"""Name, `cpu` or `cuda`, element type, shape, address. The session allocates an output with address 0."""
BindingKey = tuple[tuple[BoundTensor, ...], tuple[BoundTensor, ...]]
"""Inputs and outputs."""


def binding_key(
    inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers, bindable: Collection[str]
) -> BindingKey | None:
    """What to bind for this run; None for a run without binding: little to gain, or not possible. Pure."""
    bound_inputs: list[BoundTensor] = []
    bound_outputs: list[BoundTensor] = []
    size = 0
    for name in wanted:
        array = buffers.get(name) if name in bindable else None
        bound = None if array is None else _bound_tensor(name, array)
        if array is None or bound is None or not array.flags.writeable:
            bound_outputs.append((name, "cpu", 0, (), 0))
        else:
            bound_outputs.append(bound)
            size += array.nbytes
    if size < MIN_BIND_BYTES:
        return None
    for name, array in inputs.items():
        bound = _bound_tensor(name, array)
        if bound is None:
            return None
        bound_inputs.append(bound)
    return tuple(bound_inputs), tuple(bound_outputs)


def _bound_tensor(name: str, array: Array) -> BoundTensor | None:
    """None for what cannot be bound: strings, BF16, foreign byte orders, empty, strided or misaligned arrays."""
    element_type = ELEMENT_TYPES.get(DATATYPE.get(array.dtype, ""))
    flags = array.flags
    if element_type is None or not array.nbytes or not flags.c_contiguous or not flags.aligned:
        return None
    # By `ctypes`, which takes half the time of `__array_interface__`.
    return name, "cpu", element_type, array.shape, array.ctypes.data


class IoBindings:
    """The bindings of one session, cached, least recently used first out."""

    def __init__(self, session: Any, device: str) -> None:  # onnxruntime ships no types
        """`device` is where the session computes: `cpu` or `cuda`."""
        self._session = session
        self._device = device
        self._cache: OrderedDict[BindingKey, Any] = OrderedDict()

    def run(self, key: BindingKey, buffers: OutputBuffers) -> dict[str, Array]:
        """The outputs on the host, in their buffers if the graph wrote there. RuntimeError if the session refuses."""
        binding = self._cache.get(key)
        if binding is None:
            binding = self._bind_all(key)
            self._run(binding)
            made = _outputs_of_run(binding, key[1], buffers)
            if all(made[name] is buffers.get(name) for name, _, _, _, address in key[1] if address):
                self._add_to_cache(key, binding)
            return made
        self._cache.move_to_end(key)
        self._run(binding)
        if all(address for *_, address in key[1]):
            return {name: buffers[name] for name, *_ in key[1]}
        made = _outputs_of_run(binding, key[1], buffers)
        _unbind_allocated(binding, key[1])
        return made

    def _bind_all(self, key: BindingKey) -> Any:  # an IOBinding
        binding = self._session.io_binding()
        for name, device, element_type, shape, address in key[0]:
            binding.bind_input(name, device, 0, element_type, shape, address)
        for name, device, element_type, shape, address in key[1]:
            if address:
                binding.bind_output(name, device, 0, element_type, shape, address)
            else:
                binding.bind_output(name, device, 0)
        return binding

    def _run(self, binding: Any) -> None:  # an IOBinding
        if self._device == "cpu":
            self._session.run_with_iobinding(binding)
            return
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def _add_to_cache(self, key: BindingKey, binding: Any) -> None:  # an IOBinding
        """Unless inputs are in other memory than the session's: those are copied to the device when they are bound."""
        if any(device != self._device for _, device, *_ in key[0]):
            return
        _unbind_allocated(binding, key[1])
        self._cache[key] = binding
        if len(self._cache) > CACHE_LIMIT:
            self._cache.popitem(last=False)


def _outputs_of_run(
    binding: Any, outputs: Iterable[BoundTensor], buffers: OutputBuffers
) -> dict[str, Array]:  # an IOBinding
    """The outputs of a run. One that is an input of the graph too is not written where it was bound (observed)."""
    made: dict[str, Array] = {}
    for (name, _, _, _, address), value in zip(outputs, binding.get_outputs(), strict=True):
        made[name] = buffers[name] if address and value.data_ptr() == address else value.numpy()
    return made


def _unbind_allocated(binding: Any, outputs: Iterable[BoundTensor]) -> None:  # an IOBinding
    """Bind again what the session allocated: its next run would write into the result that it returned before
    (observed)."""
    for name, device, _, _, address in outputs:
        if not address:
            binding.bind_output(name, device, 0)


def mismatched_outputs(made: Mapping[str, Array], buffers: OutputBuffers) -> set[str]:
    """The outputs whose dtype or shape is not the predicted one of their buffer. Pure."""
    return {
        name
        for name, array in buffers.items()
        if name in made and (made[name].shape != array.shape or made[name].dtype != array.dtype)
    }
