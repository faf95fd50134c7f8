"""The NVML helper, the home of pynvml: `python -m mmsup.supervisor.gpu` answers each line with one line of JSON.

NVML can hang for ever beside a broken process, so it is called in this helper process with a deadline
(nvml_client.py), never in the controller.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.gpu.inventory import Gpu, GpuProcess, Gpus


class _Nvml:
    """NVML. Every call may hang for ever."""

    def __init__(self) -> None:
        self._library: Any = None  # a module that ships no types

    def read(self) -> Gpus:
        try:
            nvml: Any = importlib.import_module("pynvml")  # see above
        except ImportError:
            return Gpus((), "nvidia-ml-py is not installed; the extra is mmsup[gpu]")
        try:
            if self._library is None:
                nvml.nvmlInit()
                self._library = nvml
            found = [_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            self._library = None  # the driver may have been loaded anew
            return Gpus((), f"NVML: {error}")
        return Gpus(tuple(each for each in found if each is not None), "NVML lists no device that works")


def _device(nvml: Any, index: int) -> Gpu | None:  # the module, which ships no types
    """One device; None for one that has fallen off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return None
    total_bytes = free_bytes = errors = 0
    with contextlib.suppress(nvml.NVMLError):  # a device that shares the host's memory has none of its own
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total_bytes, free_bytes = int(memory.total), int(memory.free)
    with contextlib.suppress(nvml.NVMLError):
        kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        errors = int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, since))
    return Gpu(index, uuid, name, total_bytes, free_bytes, errors, tuple(_processes(nvml, handle)))


def _processes(nvml: Any, handle: Any) -> Iterator[GpuProcess]:  # the module, and a pointer of its own
    with contextlib.suppress(nvml.NVMLError):
        for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if each.usedGpuMemory is not None:
                yield GpuProcess(int(each.pid), int(each.usedGpuMemory))


def _serve(read: Callable[[], Gpus]) -> None:
    """One line for each line, until the end of input."""
    for _ in sys.stdin.buffer:
        sys.stdout.buffer.write(to_json(read()) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    forbid_inspection(os.environ)
    ignore_stray_signals(lambda _: None)  # its output is read by the controller
    _serve(_Nvml().read)
