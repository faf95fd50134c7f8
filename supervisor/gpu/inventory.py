"""GPUs: which there are, and which of them a worker sees; what NVML says of them, parsed. Pure.

A worker sees exactly one GPU, by UUID, so that it is `cuda:0` there whatever
the order of the devices; a worker on the CPU sees none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.transport.dataclass_codec import WireError, from_json

DeviceLoad = tuple[int, int, int]
NO_LOAD: Final[DeviceLoad] = (0, 0, 0)
"""Of a device that nothing is held against."""


class NoGpu(LookupError):  # noqa: N818 - reads as what it says
    """The device that was asked for cannot be had now; the text says why, `code` is of ipc/errors.py's catalogue."""

    code = "load_failed"


class GpuCordoned(NoGpu):
    """It is here, and nothing new goes there."""

    code = "gpu_fault"


class NoGpuMemory(NoGpu):
    """It is here, and memory that was to come back has not."""

    code = "insufficient_gpu_memory"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """What one process holds on a device."""

    pid: int
    held_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, as NVML numbers it, at one moment."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    """0: it shares the host's memory and has none of its own."""
    free_bytes: int = 0
    memory_errors: int = 0
    """That no code could correct, since the driver was loaded; 0 also where they are not counted."""
    held: tuple[GpuProcess, ...] = ()
    """By processes that NVML shows us; in a container it may show none."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """All devices that work; `why` says why there are none."""

    devices: tuple[Gpu, ...]
    why: str = ""

    def find(self, uuid: str) -> Gpu | None:
        """The device of this UUID."""
        return next((each for each in self.devices if each.uuid == uuid), None)


def parse(line: bytes) -> Gpus:
    """What the helper said."""
    try:
        gpus = from_json(line, (Gpus,))
    except WireError:
        return Gpus((), "the GPU helper said nothing that can be read")
    assert isinstance(gpus, Gpus)
    return gpus


def visible_gpus(gpus: Gpus, visible: str | None) -> Gpus:
    """Those that the server itself may see, by its own CUDA_VISIBLE_DEVICES and in its order; None is all."""
    if visible is None:
        return gpus
    kept: list[Gpu] = []
    for word in visible.split(","):
        found = find_gpu(gpus, word.strip())
        if found is None:
            break  # CUDA's rule: the first name that is no device ends the list
        kept.append(found)
    return Gpus(tuple(kept), f"CUDA_VISIBLE_DEVICES={visible} shows none" if gpus.devices else gpus.why)


def candidates(device: str, gpus: Gpus) -> tuple[Gpu, ...]:
    """The GPUs that `cuda` (any), `cuda:N` or a UUID means; NoGpu if there is none of them here."""
    if not gpus.devices:
        raise NoGpu(f"device {device!r}: there is no GPU here: {gpus.why}")
    if device == "cuda":
        return gpus.devices
    found: Gpu | None
    if device.startswith("cuda:"):
        number = device.removeprefix("cuda:")
        found = gpus.devices[int(number)] if number.isdecimal() and int(number) < len(gpus.devices) else None
    else:
        found = _by_uuid(gpus, device)
    if found is None:
        here = ", ".join(f"cuda:{place} ({each.name}, {each.uuid})" for place, each in enumerate(gpus.devices))
        raise NoGpu(f"device {device!r} is not here; there is {here}")
    return (found,)


def choose(
    device: str,
    gpus: Gpus,
    cordoned: Mapping[str, str] | None = None,
    load_of: Callable[[str], DeviceLoad] = lambda _: NO_LOAD,
) -> Gpu:
    """The GPU for a worker on this device: of several the one, by UUID, with the least burden. `aside`: why nothing
    new goes to which UUID. NoGpu if it is not here, SetAside if it is."""
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

    `gpus` None: nobody has asked NVML; the device is then taken at its word, and CUDA will say if it is not there.
    """
    if device == "cpu":
        return ""
    if gpus is not None and not device.startswith("MIG-"):
        return choose(device, gpus, cordoned, load_of).uuid
    # A part of a card does not stand in the list of cards.
    word = {"cuda": "0"}.get(device, device.removeprefix("cuda:"))
    if cordoned and word in cordoned:
        raise GpuCordoned(f"{word} is set aside: {cordoned[word]}")
    return word


def gpu_label(gpus: Gpus, gpu: Gpu) -> str:
    """A device in words: `cuda:1 (NVIDIA H200)`; numbers are those of the server, by which models are bound."""
    place = next((place for place, each in enumerate(gpus.devices) if each.uuid == gpu.uuid), gpu.index)
    return f"cuda:{place} ({gpu.name})"


def find_gpu(gpus: Gpus, word: str) -> Gpu | None:
    """By index or UUID, as CUDA_VISIBLE_DEVICES names them."""
    if word.isdecimal():
        return next((each for each in gpus.devices if each.index == int(word)), None)
    return _by_uuid(gpus, word)


def _by_uuid(gpus: Gpus, word: str) -> Gpu | None:
    """A UUID may be cut short, as long as one device alone begins so."""
    found = [each for each in gpus.devices if each.uuid.startswith(word)] if word.startswith("GPU-") else []
    return found[0] if len(found) == 1 else None
