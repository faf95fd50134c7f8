"""An ONNX session's run between given addresses: its outputs are written where they will be sent from.

`key_of` decides, and is pure; `Bindings` does it, with the session's own objects. A binding is a list of addresses, so
it is good for every run between the same addresses: a gateway gives the slot that became free last to the next
request, and the same few come again and again. Nothing is read or written through a binding but in its run, and its key
holds every address in it: one whose extent is gone is never met again, or it is right again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mmsup.ipc.tensors.numpy_arrays import DATATYPE, Array
from mmsup.worker.execution.engine import OutputBuffers

MIN_BIND_BYTES: Final = 128 << 10
"""From this much output on. Microseconds of Relu by onnxruntime 1.32 on one core (2-core VM, kernel 6.18), for run and
copy into the slot / a new binding / a kept one:

    64 KiB 14.9 / 21.9 / 5.4    128 KiB 20.0 / 25.2 / 7.1    256 KiB 32.3 / 31.4 / 12.1
    602 KB 54.8 / 42.6 / 21.9   12.6 MB 1,599 / 631 / 603

Without room a binding gains nothing at any size (28.8 against 12.7 for 128 KiB): `run` takes inputs without a copy,
and gives its outputs away without one."""
CACHE_LIMIT: Final = 32
"""Pairs of slots in use at one time are as many as requests in flight; each kept one is a few hundred bytes."""
ELEMENT_TYPES: Final = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7,
    "BOOL": 9, "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13,
}  # fmt: skip
"""onnx.TensorProto.DataType. BYTES has no address; BF16 comes back as no array."""

BoundTensor = tuple[str, str, int, tuple[int, ...], int]
"""Name, `cpu` or `cuda`, element type, shape, address. An output at no address is the session's to allocate there."""
BindingKey = tuple[tuple[BoundTensor, ...], tuple[BoundTensor, ...]]
"""Inputs and outputs."""


class DeviceTensor(NamedTuple):
    """A tensor on a device."""

    datatype: str
    shape: tuple[int, ...]
    address: int


def binding_key(
    inputs: Mapping[str, Array], outputs: Sequence[str], room: OutputBuffers, bindable: Collection[str]
) -> BindingKey | None:
    """What to bind for this run; None if a run without binding is due: little to gain, or not possible. Pure."""
    given: list[BoundTensor] = []
    made: list[BoundTensor] = []
    size = 0
    for name in outputs:
        array = room.get(name) if name in bindable else None
        bind = None if array is None else _bound_tensor(name, array)
        if array is None or bind is None or not array.flags.writeable:
            made.append((name, "cpu", 0, (), 0))
        else:
            made.append(bind)
            size += array.nbytes
    if size < MIN_BIND_BYTES:
        return None
    for name, array in inputs.items():
        bind = _bound_tensor(name, array)
        if bind is None:
            return None
        given.append(bind)
    return tuple(given), tuple(made)


def _bound_tensor(name: str, array: Array) -> BoundTensor | None:
    """None for what has no plain address: strings, BF16, foreign byte orders, nothing, holes, odd addresses."""
    element_type = ELEMENT_TYPES.get(DATATYPE.get(array.dtype, ""))
    flags = array.flags
    if element_type is None or not array.nbytes or not flags.c_contiguous or not flags.aligned:
        return None
    return name, "cpu", element_type, array.shape, address_of(array)


def device_binding_key(inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor | None]) -> BindingKey:
    """What to bind where the caller has copied the inputs to the device by itself, and will copy the outputs from
    there; None is an output that the session shall allocate there. LookupError for what has no plain address. Pure."""
    given = [_device_bound_tensor(name, each) for name, each in inputs.items()]
    made = [
        (name, "cuda", 0, (), 0) if each is None else _device_bound_tensor(name, each) for name, each in outputs.items()
    ]
    return tuple(given), tuple(made)


def _device_bound_tensor(name: str, tensor: DeviceTensor) -> BoundTensor:
    return name, "cuda", ELEMENT_TYPES[tensor.datatype], tensor.shape, tensor.address


def address_of(array: Array) -> int:
    """Where an array begins. By `ctypes`, which takes half the time of `__array_interface__`."""
    return array.ctypes.data


class IoBindings:
    """Of one session, the latest used."""

    def __init__(self, session: Any, device: str) -> None:  # onnxruntime ships no types
        """`device` is where the session computes: `cpu` or `cuda`."""
        self._session = session
        self._device = device
        self._cache: OrderedDict[BindingKey, Any] = OrderedDict()

    def run(self, key: BindingKey, room: OutputBuffers) -> dict[str, Array]:
        """The outputs on the host, in their room if the graph put them there. RuntimeError if the session refuses."""
        binding = self._cache.get(key)
        if binding is None:
            binding = self._bind_all(key)
            self._run(binding)
            made = _outputs_of_run(binding, key[1], room)
            if all(made[name] is room.get(name) for name, _, _, _, address in key[1] if address):
                self._add_to_cache(key, binding)
            return made
        self._cache.move_to_end(key)
        self._run(binding)
        if all(address for *_, address in key[1]):
            return {name: room[name] for name, *_ in key[1]}
        made = _outputs_of_run(binding, key[1], room)
        _unbind_allocated(binding, key[1])
        return made

    def clear(self) -> None:
        """Forget all."""
        self._cache.clear()

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
        """Not where inputs come from elsewhere: they are copied to the device when they are bound."""
        if any(device != self._device for _, device, *_ in key[0]):
            return
        _unbind_allocated(binding, key[1])
        self._cache[key] = binding
        if len(self._cache) > CACHE_LIMIT:
            self._cache.popitem(last=False)


def _outputs_of_run(
    binding: Any, outputs: Iterable[BoundTensor], room: OutputBuffers
) -> dict[str, Array]:  # an IOBinding
    """What a run gave. An output that is an input of the graph too is not written to where it was bound (seen)."""
    made: dict[str, Array] = {}
    for (name, _, _, _, address), value in zip(outputs, binding.get_outputs(), strict=True):
        made[name] = room[name] if address and value.data_ptr() == address else value.numpy()
    return made


def _unbind_allocated(binding: Any, outputs: Iterable[BoundTensor]) -> None:  # an IOBinding
    """Bind anew what the session allocated: its next run would write into the answer that it gave before (seen)."""
    for name, device, _, _, address in outputs:
        if not address:
            binding.bind_output(name, device, 0)


def mismatched_outputs(made: Mapping[str, Array], room: OutputBuffers) -> set[str]:
    """The outputs that turned out otherwise than their room said. Pure."""
    return {
        name
        for name, array in room.items()
        if name in made and (made[name].shape != array.shape or made[name].dtype != array.dtype)
    }
