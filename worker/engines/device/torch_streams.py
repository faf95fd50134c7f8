"""The device interface of streams.py, by torch. On the CPU, where this is tested, work is executed at once.

All methods are called in torch's inference mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Final, cast

import numpy as np
import torch

from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines.device.streams import DeviceStream, DType

DATATYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
TORCH: Final = {NUMPY[name]: dtype for dtype, name in DATATYPES.items()}
MAX_PINNED_BYTES: Final = 16 << 20
"""Host memory up to this size is page-locked, and stays so in torch's cache. A larger result without an output buffer
is the first of its kind: the next will have one."""

cuda: Any = torch.cuda  # its types have gaps
from_numpy: Callable[[Array], torch.Tensor] = cast("Any", torch).from_numpy


class TorchDevice:
    """Streams of a CUDA device, MAIN being torch's current one; on the CPU no streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[DeviceStream, Any] = {}  # torch.cuda's types have gaps
        if device.type == "cuda":
            self._streams = {
                DeviceStream.IN: cuda.Stream(),
                DeviceStream.MAIN: cuda.current_stream(),
                DeviceStream.OUT: cuda.Stream(),
            }

    def buffer(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def host_array(self, size: int) -> Array:
        if not self._streams or size > MAX_PINNED_BYTES:
            return np.empty(size, np.uint8)
        array: Array = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return array

    def copy_to_device(self, buffer: torch.Tensor, at: int, data: Array) -> None:
        with self._on(DeviceStream.IN):
            buffer[at : at + data.nbytes].copy_(from_numpy(data), non_blocking=True)

    def zero(self, buffer: torch.Tensor, at: int, size: int) -> None:
        with self._on(DeviceStream.IN):
            buffer[at : at + size].zero_()

    def tensor(self, buffer: torch.Tensor, dtype: DType, shape: tuple[int, ...], *, own: bool) -> torch.Tensor:
        if dtype not in TORCH:
            raise TypeError(f"torch has no tensors of {dtype}")
        view = buffer[: math.prod(shape) * dtype.itemsize].view(TORCH[dtype]).reshape(shape)
        return view.clone() if own else view

    def result(self, tensor: torch.Tensor) -> tuple[torch.Tensor, DType, tuple[int, ...]]:
        whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
        return whole, _numpy_dtype(whole.dtype), tuple(whole.shape)

    def copy_to_host(self, tensor: torch.Tensor, first: int, last: int, into: Array) -> None:
        if not into.nbytes:
            return
        target = (
            from_numpy(into.view(np.int16)).view(torch.bfloat16) if into.dtype == NUMPY["BF16"] else from_numpy(into)
        )
        with self._on(DeviceStream.OUT):
            target.copy_(tensor if first < 0 else tensor[first:last], non_blocking=True)

    def record_event(self, stream: DeviceStream) -> Any:  # an event
        if not self._streams:
            return None
        event = cuda.Event()
        event.record(self._streams[stream])
        return event

    def wait_event(self, stream: DeviceStream, event: Any) -> None:  # an event
        if self._streams:
            self._streams[stream].wait_event(event)

    def synchronize_event(self, event: Any) -> None:  # an event
        event.synchronize()

    def synchronize(self) -> None:
        for stream in self._streams.values():
            stream.synchronize()

    def _on(self, stream: DeviceStream) -> AbstractContextManager[Any]:
        return cuda.stream(self._streams[stream]) if self._streams else nullcontext()


@cache
def _numpy_dtype(dtype: torch.dtype) -> DType:
    return NUMPY["BF16"] if dtype is torch.bfloat16 else torch.empty(0, dtype=dtype).numpy().dtype
