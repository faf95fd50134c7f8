"""GPUs as NVML describes them, and how they are named. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.ipc.transport.dataclass_codec import WireError, from_json


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    held_bytes: int


UNKNOWN: Final = -1.0
"""Of a figure that a device does not report."""


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """What a device does and takes; each UNKNOWN where it does not say."""

    utilization: float = UNKNOWN
    """0 to 1, over the last second or less."""
    power_watts: float = UNKNOWN
    power_limit_watts: float = UNKNOWN
    energy_joules: float = UNKNOWN
    """Since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device at one moment, numbered as NVML does."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    """0: it shares the host's memory and has none of its own."""
    free_bytes: int = 0
    memory_errors: int = 0
    """Uncorrected ones since the driver was loaded; 0 also where they are not counted."""
    held: tuple[GpuProcess, ...] = ()
    """By processes that NVML shows; in a container it may show none."""
    pci: str = ""
    """Its PCI address as NVML writes it: `00000000:3B:00.0`."""
    card: str = ""
    """Of a part of a card (MIG): the card's UUID."""
    load: GpuLoad = GpuLoad()


@dataclass(frozen=True, slots=True)
class Gpus:
    """All devices that work; `why` says why there are none."""

    devices: tuple[Gpu, ...]
    why: str = ""
    parts: tuple[Gpu, ...] = ()
    """Of cards that are divided (MIG): a worker sees one of them by its UUID."""

    def find(self, uuid: str) -> Gpu | None:
        return next((each for each in (*self.devices, *self.parts) if each.uuid == uuid), None)


def parse(line: bytes) -> Gpus:
    try:
        gpus = from_json(line, (Gpus,))
    except WireError:
        return Gpus((), "the answer of the GPU helper cannot be read")
    assert isinstance(gpus, Gpus)
    return gpus


def visible_gpus(gpus: Gpus, visible: str | None) -> Gpus:
    """Those that CUDA_VISIBLE_DEVICES of the server shows, in its order; None shows all."""
    if visible is None:
        return gpus
    shown: list[Gpu] = []
    for name in visible.split(","):
        found = find_gpu(gpus, name.strip())
        if found is None:
            break  # CUDA's rule: the first name that is no device ends the list
        shown.append(found)
    cards = {each.uuid for each in shown}
    parts = tuple(each for each in gpus.parts if each.card in cards)
    return Gpus(tuple(shown), f"CUDA_VISIBLE_DEVICES={visible} shows none" if gpus.devices else gpus.why, parts)


def find_gpu(gpus: Gpus, name: str) -> Gpu | None:
    """By NVML's index or by UUID, which may be cut short if it is unambiguous, as in CUDA_VISIBLE_DEVICES."""
    if name.isdecimal():
        return next((each for each in gpus.devices if each.index == int(name)), None)
    found = [each for each in gpus.devices if each.uuid.startswith(name)] if name.startswith("GPU-") else []
    return found[0] if len(found) == 1 else None


def gpu_label(gpus: Gpus, gpu: Gpu) -> str:
    """`cuda:1 (NVIDIA H200)`; the number is the server's, as in the `device` of models."""
    if gpu.card:
        return f"{gpu.uuid} ({gpu.name})"
    number = next((number for number, each in enumerate(gpus.devices) if each.uuid == gpu.uuid), gpu.index)
    return f"cuda:{number} ({gpu.name})"
