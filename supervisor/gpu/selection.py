"""Which GPU a worker sees, chosen from the `device` of its model. Pure.

A worker sees exactly one GPU, by UUID, so that it is `cuda:0` there whatever the order of the devices; a worker on the
CPU sees none. A model without `device` runs on the CPU also where there is a GPU: an instance there would take memory
from the models that were put there. `auto` takes a GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from mmsup.supervisor.gpu.inventory import Gpu, Gpus, find_gpu, gpu_label

DeviceLoad = tuple[int, int, int, int]
"""Of one GPU, the first difference counts: memory that is not released, bytes that its budget lacks for the worker in
question, faults, workers."""
NO_LOAD: Final[DeviceLoad] = (0, 0, 0, 0)


class NoGpu(LookupError):  # noqa: N818 - a state, not an error of the server
    """There is no GPU for this device now; the text says why, `code` is one of ipc/errors.py."""

    code = "load_failed"


class GpuCordoned(NoGpu):
    """It exists, and nothing new is placed there."""

    code = "gpu_fault"


class NoGpuMemory(NoGpu):
    """It exists, and memory that was to be released has not been."""

    code = "insufficient_gpu_memory"


def resolve_auto(device: str, gpus: Gpus | None) -> str:
    """What `auto` means here: `cuda` if there is a GPU, else `cpu`; any other device means itself."""
    if device != "auto":
        return device
    return "cuda" if gpus is not None and gpus.devices else "cpu"


def candidates(device: str, gpus: Gpus) -> tuple[Gpu, ...]:
    """The GPUs that `cuda` (any), `cuda:N` or a UUID names; NoGpu if there is none."""
    if not gpus.devices:
        raise NoGpu(f"device {device!r}: there is no GPU here: {gpus.why}")
    if device == "cuda":
        return gpus.devices
    found: Gpu | None
    if device.startswith("cuda:"):
        number = device.removeprefix("cuda:")
        found = gpus.devices[int(number)] if number.isdecimal() and int(number) < len(gpus.devices) else None
    else:
        found = find_gpu(gpus, device) if not device.isdecimal() else None
    if found is None:
        here = ", ".join(f"cuda:{number} ({each.name}, {each.uuid})" for number, each in enumerate(gpus.devices))
        raise NoGpu(f"device {device!r} is not here; there is {here}")
    return (found,)


def choose(
    device: str,
    gpus: Gpus,
    cordoned: Mapping[str, str] | None = None,
    load_of: Callable[[str], DeviceLoad] = lambda _: NO_LOAD,
) -> Gpu:
    """The GPU for a worker on this device: of several the one with the least load. `cordoned`: reasons by UUID. Raises
    NoGpu if there is none and GpuCordoned if all are cordoned."""
    found, reasons = candidates(device, gpus), cordoned or {}
    free = [each for each in found if each.uuid not in reasons]
    if not free:
        raise GpuCordoned("; ".join(f"{gpu_label(gpus, each)} is set aside: {reasons[each.uuid]}" for each in found))
    return min(free, key=lambda each: load_of(each.uuid))


def visible_devices(
    device: str,
    gpus: Gpus | None = None,
    cordoned: Mapping[str, str] | None = None,
    load_of: Callable[[str], DeviceLoad] = lambda _: NO_LOAD,
) -> str:
    """CUDA_VISIBLE_DEVICES of a worker on this device; empty hides all. Raises as `choose`.

    `gpus` None: NVML has not been asked; `device` is then passed on, and CUDA reports if it does not exist.
    """
    device = resolve_auto(device, gpus)
    if device == "cpu":
        return ""
    if gpus is not None and not device.startswith("MIG-"):
        return choose(device, gpus, cordoned, load_of).uuid
    # NVML does not list the parts of a device.
    name = {"cuda": "0"}.get(device, device.removeprefix("cuda:"))
    if cordoned and name in cordoned:
        raise GpuCordoned(f"{name} is set aside: {cordoned[name]}")
    return name
