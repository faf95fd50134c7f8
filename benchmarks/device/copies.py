"""Copies between a gateway's memory and a device: registered or not, one by one or as a batch."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mmsup.worker.engines.device.cuda_driver import open_driver
from mmsup.worker.engines.device.pinned_memory import registration_flags

MIB = 1 << 20
REGISTER_HEADS = ["a memfd of, MiB", "mapped", "registering it, ms", "undoing it, ms"]
COPY_HEADS = ["bytes", "registered: to the device, GB/s", "back, GB/s", "not: to the device, GB/s", "back, GB/s"]
BATCH_HEADS = ["a batch of 16 rows", "way", "ms a batch"]
SIZES = 65_536, 602_112, 12_582_912, 268_435_456


class SharedMapping:
    """A memfd, mapped twice over: as its owner has it and as a worker may see it."""

    def __init__(self, size: int) -> None:
        self.size = size
        fd = os.memfd_create("mmsup-bench")
        os.posix_fallocate(fd, 0, size)
        self.writable = mmap.mmap(fd, size)
        self.writable[:] = os.urandom(4096) * (size // 4096)
        self.readable = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        os.close(fd)

    def address(self, *, writable: bool) -> int:
        """Where it is."""
        return int(np.frombuffer(self.writable if writable else self.readable, np.uint8).ctypes.data)

    def tensor(self, size: int, offset: int = 0) -> Any:  # a torch tensor
        """Bytes of it."""
        return torch.frombuffer(self.writable, dtype=torch.uint8, count=size, offset=offset)


def registered() -> list[list[str]]:
    """How long it takes to register memory of a gateway."""
    driver = open_driver()
    assert driver is not None, "no CUDA driver"
    found: list[list[str]] = []
    for size in (16, 64, 256, 1024):
        memory = SharedMapping(size * MIB)
        for writable in (True, False):
            flags = registration_flags(memory.size, writable=writable, registers_read_only=driver.registers_read_only)
            if flags is None:
                found.append([str(size), "read-only", "the device registers none", ""])
                continue
            address, began = memory.address(writable=writable), time.monotonic()
            fault = driver.register(address, memory.size, flags)
            middle = time.monotonic()
            undone = "" if fault else driver.unregister(address)
            end = time.monotonic()
            times = [fault, ""] if fault else [f"{(middle - began) * 1e3:.1f}", undone or f"{(end - middle) * 1e3:.1f}"]
            found.append([str(size), "writable" if writable else "read-only", *times])
    return found


def _median_s(once: Callable[[], object], rounds: int) -> float:
    times: list[float] = []
    for _ in range(rounds + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        once()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def copied() -> list[list[str]]:
    """The speed of the bus, for each size."""
    driver = open_driver()
    assert driver is not None, "no CUDA driver"
    memory = SharedMapping(max(SIZES))
    device = torch.empty(max(SIZES), dtype=torch.uint8, device="cuda")
    speeds: dict[tuple[bool, int, bool], float] = {}
    for pinned in (False, True):
        if pinned:
            assert not driver.register(memory.address(writable=True), memory.size, 0)
        for size in SIZES:
            host, there = memory.tensor(size), device[:size]
            for inwards in (True, False):
                to, of = (there, host) if inwards else (host, there)
                took = _median_s(lambda to=to, of=of: to.copy_(of, non_blocking=True), 30 if size < 1 << 26 else 8)
                speeds[pinned, size, inwards] = size / took / 1e9
    driver.unregister(memory.address(writable=True))
    return [
        [
            f"{size:,}",
            *(f"{speeds[pinned, size, inwards]:.1f}" for pinned in (True, False) for inwards in (True, False)),
        ]
        for size in SIZES
    ]


def batched(row_bytes: int = 602_112, rows: int = 16) -> list[list[str]]:
    """Rows straight into the batch on the device, against a batch that is gathered on the host first."""
    driver = open_driver()
    assert driver is not None, "no CUDA driver"
    memory = SharedMapping(16 * MIB)
    assert not driver.register(memory.address(writable=True), memory.size, 0)
    parts = [memory.tensor(row_bytes, place * row_bytes) for place in range(rows)]
    there = torch.empty(rows, row_bytes, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(rows, row_bytes, dtype=torch.uint8, pin_memory=True)
    plain = torch.empty(rows, row_bytes, dtype=torch.uint8)

    def straight() -> None:
        for place, part in enumerate(parts):
            there[place].copy_(part, non_blocking=True)

    def gathered(host: Any) -> None:  # a torch tensor
        for place, part in enumerate(parts):
            host[place].copy_(part)
        there.copy_(host, non_blocking=True)

    ways = {
        "each from its slot to its row": straight,
        "gathered into pinned memory, one copy": lambda: gathered(pinned),
        "gathered into plain memory, one copy": lambda: gathered(plain),
    }
    found = [[f"{rows} x {row_bytes:,}", way, f"{_median_s(once, 50) * 1e3:.3f}"] for way, once in ways.items()]
    driver.unregister(memory.address(writable=True))
    return found
