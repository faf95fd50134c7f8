"""What a CUDA context and its libraries take, and whether NVML knows whose it is."""

from __future__ import annotations

import time
from contextlib import ExitStack

from device.held import ContextHolder, GpuCard

HEADS = ["processes", "what", "the device's change, MiB each", "NVML by pid, MiB each", "seconds, of the last"]
MIB = 1 << 20


def rows(card: GpuCard, counts: tuple[int, ...] = (1, 2, 4)) -> list[list[str]]:
    """A line for each number of processes and each step."""
    found: list[list[str]] = []
    for count in counts:
        with ExitStack() as stack:
            before = card.used_bytes()
            holders = [stack.enter_context(ContextHolder()) for _ in range(count)]
            for step in ("context", "blas", "dnn"):
                for each in holders:
                    began = time.monotonic()
                    each.send(step)
                    took = time.monotonic() - began
                change = (card.used_bytes() - before) / count / MIB
                listed = [card.used_by(each.pid) for each in holders]
                known = [each for each in listed if each is not None]
                by_pid = f"{sum(known) / len(known) / MIB:.0f}" if known else "not listed"
                found.append([str(count), step, f"{change:.0f}", by_pid, f"{took:.2f}"])
        card.released_after_s(before + 64 * MIB)
    return found
