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
from dataclasses import replace
from typing import Any

from mmsup.ipc.inspection import forbid_inspection
from mmsup.ipc.stray_signals import ignore_stray_signals
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.gpu.inventory import UNKNOWN, Gpu, GpuLoad, GpuProcess, Gpus


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
            parts = [part for each in found if each is not None for part in _parts(nvml, each)]
        except nvml.NVMLError as error:
            self._library = None  # the driver may have been loaded anew
            return Gpus((), f"NVML: {error}")
        devices = tuple(each for each in found if each is not None)
        return Gpus(devices, "NVML lists no device that works", tuple(parts))


def _device(nvml: Any, index: int) -> Gpu | None:  # the module, which ships no types
    """One device; None for one that has fallen off the bus."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = str(nvml.nvmlDeviceGetUUID(handle)), str(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return None
    return _seen(nvml, handle, Gpu(index, uuid, name, 0))


def _parts(nvml: Any, card: Gpu) -> Iterator[Gpu]:  # the module, which ships no types
    """Those into which the card is divided, if it is and the driver knows of such things."""
    with contextlib.suppress(nvml.NVMLError, AttributeError):
        handle = nvml.nvmlDeviceGetHandleByIndex(card.index)
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return
        for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(nvml.NVMLError):  # no part has this number
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
                name = f"{card.name} MIG {index}"
                yield _seen(nvml, part, Gpu(card.index, str(nvml.nvmlDeviceGetUUID(part)), name, 0, card=card.uuid))


def _seen(nvml: Any, handle: Any, gpu: Gpu) -> Gpu:  # the module, and a pointer of its own
    """With what NVML shows of it now."""
    total_bytes = free_bytes = errors = 0
    pci = ""
    with contextlib.suppress(nvml.NVMLError, AttributeError):
        bus = nvml.nvmlDeviceGetPciInfo(handle).busId
        pci = bus.decode() if isinstance(bus, bytes) else str(bus)
    with contextlib.suppress(nvml.NVMLError):  # a device that shares the host's memory has none of its own
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total_bytes, free_bytes = int(memory.total), int(memory.free)
    with contextlib.suppress(nvml.NVMLError):
        kind, since = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        errors = int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, since))
    held, load = tuple(_processes(nvml, handle)), _load(nvml, handle)
    memory_seen = replace(gpu, total_bytes=total_bytes, free_bytes=free_bytes, memory_errors=errors)
    return replace(memory_seen, held=held, pci=pci, load=load)


def _load(nvml: Any, handle: Any) -> GpuLoad:  # the module, and a pointer of its own
    def figure(read: Callable[[], float], divisor: float) -> float:
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            return float(read()) / divisor
        return UNKNOWN

    return GpuLoad(
        figure(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu, 100),
        figure(lambda: nvml.nvmlDeviceGetPowerUsage(handle), 1000),
        figure(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle), 1000),
        figure(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1000),
    )


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
