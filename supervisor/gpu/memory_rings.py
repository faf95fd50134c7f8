"""What keeps a worker to its share of a GPU, by what the driver and the kernel offer here. Pure.

    allocator   torch's and onnxruntime's own limit: an allocation fails, and the worker lives. Always
    watch       NVML's figure of the worker's processes: beyond `gpu_memory` the worker is ended (memory_excess.py)
    dmem        the kernel's cgroup controller for device memory: an allocation fails, whoever makes it
    mps         the limit of an MPS client. Under MPS NVML does not show who holds what: there is no watch
    mig         the worker sees a part of the card that has memory of its own

None of the last three is required.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mmsup.supervisor.gpu.inventory import Gpu


@dataclass(frozen=True, slots=True)
class RingFacts:
    """What was found on this machine."""

    answers: bool
    """NVML shows the device now."""
    dmem_regions: tuple[str, ...] = ()
    """Of the controller, where the groups of workers have it: `drm/0000:3b:00.0/vram0`."""
    has_mps: bool = False
    """An MPS daemon runs where workers look for one."""


def memory_rings(gpu: Gpu, facts: RingFacts) -> tuple[str, ...]:
    """The rings in force for workers on this device that have `gpu_memory`, the inner first."""
    rings = ["allocator"]
    if facts.answers and not facts.has_mps:
        rings.append("watch")
    if dmem_region(gpu.pci, facts.dmem_regions):
        rings.append("dmem")
    if facts.has_mps:
        rings.append("mps")
    if gpu.card:
        rings.append("mig")
    return tuple(rings)


def dmem_region(pci: str, regions: Iterable[str]) -> str:
    """The controller's region for the memory of the card at this PCI address, as NVML writes it; empty if none."""
    domain, _, rest = pci.lower().partition(":")
    address = f"{domain[-4:]}:{rest}"
    return next((each for each in regions if rest and f"/{address}/vram" in each), "")


def parse_regions(capacity: str) -> tuple[str, ...]:
    """The names in dmem.capacity, of lines `NAME BYTES`."""
    return tuple(line.split()[0] for line in capacity.splitlines() if line.strip())


def mps_limit(budget_bytes: int) -> dict[str, str]:
    """The environment variable by which an MPS client keeps to a budget. It sees one device, number 0."""
    return {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={max(budget_bytes >> 20, 1)}M"}
