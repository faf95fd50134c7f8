"""Which rings keep a worker to its share of a GPU, by what this machine offers."""

from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.gpu.memory_rings import RingFacts, dmem_region, memory_rings, mps_limit, parse_regions

CARD = Gpu(0, "GPU-a", "H", 1 << 37, pci="00000000:3B:00.0")
PART = Gpu(0, "MIG-a", "H MIG 0", 1 << 35, card="GPU-a")
REGIONS = ("drm/0000:08:00.0/vram0", "drm/0000:3b:00.0/stolen", "drm/0000:3b:00.0/vram0")


@pytest.mark.parametrize(
    ("gpu", "facts", "rings"),
    [
        (CARD, RingFacts(answers=True), "allocator watch"),
        (CARD, RingFacts(answers=False), "allocator"),
        (CARD, RingFacts(answers=True, dmem_regions=REGIONS), "allocator watch dmem"),
        (CARD, RingFacts(answers=True, dmem_regions=REGIONS[:1]), "allocator watch"),
        (CARD, RingFacts(answers=True, has_mps=True), "allocator mps"),
        (CARD, RingFacts(answers=False, dmem_regions=REGIONS, has_mps=True), "allocator dmem mps"),
        (PART, RingFacts(answers=True, dmem_regions=REGIONS), "allocator watch mig"),
    ],
)
def test_the_rings_follow_from_the_facts(gpu: Gpu, facts: RingFacts, rings: str) -> None:
    assert " ".join(memory_rings(gpu, facts)) == rings


@pytest.mark.parametrize(
    ("pci", "region"),
    [("00000000:3B:00.0", REGIONS[2]), ("0000:08:00.0", REGIONS[0]), ("00000000:3C:00.0", ""), ("", "")],
)
def test_a_region_is_found_by_the_cards_address(pci: str, region: str) -> None:
    assert dmem_region(pci, REGIONS) == region


def test_the_kernels_list_and_the_clients_limit_have_their_formats() -> None:
    assert parse_regions("drm/0000:08:00.0/vram0 17095983104\ndrm/0000:0a:00.0/vram 4294967296\n") == (
        "drm/0000:08:00.0/vram0",
        "drm/0000:0a:00.0/vram",
    )
    assert mps_limit(4 << 30) == {"CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=4096M"}
