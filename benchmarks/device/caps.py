"""What a share of torch's allocator holds, and what goes past it."""

from __future__ import annotations

import time

from device.held import ContextHolder, GpuCard

HEADS = ["tried under a share of 4 GiB", "what came of it"]
GIB = 1 << 30
POLL_S = 0.1


def rows(card: GpuCard) -> list[list[str]]:
    """A line for each try."""
    with ContextHolder() as holder:
        holder.send("context")
        holder.send("cap", 4 * GIB)
        through = holder.send("try", 8 * GIB)
        within = holder.send("try", 2 * GIB)
        code = holder.send("raw", 8 * GIB)
        seen = card.used_by(holder.pid) or 0
        own = int(holder.send("own"))
        listed = f"{seen / GIB:.1f} GiB" if seen else "not listed"
    return [
        ["8 GiB through torch", through],
        ["2 GiB through torch", within],
        ["8 GiB by cuMemAlloc, beside torch", "allowed" if code == "0" else f"error {code}"],
        ["what NVML says of the process then", listed],
        ["what torch says of itself then", f"{own / GIB:.1f} GiB"],
        *watch_overrun(card),
    ]


def watch_overrun(card: GpuCard) -> list[list[str]]:
    """A look each 100 ms at a process that goes past its budget at once: how long it lives, how far it comes."""
    before = card.used_bytes()
    with ContextHolder() as holder:
        holder.send("context")
        began = time.monotonic()
        holder.send("raw", 8 * GIB)
        while (card.used_by(holder.pid) or card.used_bytes() - before) < 4 * GIB:
            time.sleep(POLL_S)
        seen_s = time.monotonic() - began
        exit_s = holder.kill()
        back_s = card.released_after_s(before + 64 * (1 << 20))
    costs: list[float] = []
    for _ in range(20):
        looked = time.monotonic()
        card.used_bytes()
        card.used_by(0)
        costs.append(time.monotonic() - looked)
    return [
        ["8 GiB past it: seen, killed, gone, given back, ms",
         f"{seen_s * 1e3:.0f}, then {exit_s * 1e3:.0f}, then {back_s * 1e3:.0f}"],
        ["one look by NVML, ms: least / most of 20", f"{min(costs) * 1e3:.2f} / {max(costs) * 1e3:.2f}"],
    ]  # fmt: skip
