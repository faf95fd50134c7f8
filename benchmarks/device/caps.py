"""What a share of torch's allocator holds, and what goes past it."""

from __future__ import annotations

import time

from device.held import Card, Holder

HEADS = ["tried under a share of 4 GiB", "what came of it"]
GIB = 1 << 30
LOOK_S = 0.1


def rows(card: Card) -> list[list[str]]:
    """A line for each try."""
    with Holder() as holder:
        holder.do("context")
        holder.do("cap", 4 * GIB)
        through = holder.do("try", 8 * GIB)
        within = holder.do("try", 2 * GIB)
        code = holder.do("raw", 8 * GIB)
        seen = card.of(holder.pid) or 0
        own = int(holder.do("own"))
        listed = f"{seen / GIB:.1f} GiB" if seen else "not listed"
    return [
        ["8 GiB through torch", through],
        ["2 GiB through torch", within],
        ["8 GiB by cuMemAlloc, beside torch", "allowed" if code == "0" else f"error {code}"],
        ["what NVML says of the process then", listed],
        ["what torch says of itself then", f"{own / GIB:.1f} GiB"],
        *watched(card),
    ]


def watched(card: Card) -> list[list[str]]:
    """A look each 100 ms at a process that goes past its budget at once: how long it lives, how far it comes."""
    before = card.used_bytes()
    with Holder() as holder:
        holder.do("context")
        began = time.monotonic()
        holder.do("raw", 8 * GIB)
        while (card.of(holder.pid) or card.used_bytes() - before) < 4 * GIB:
            time.sleep(LOOK_S)
        seen_s = time.monotonic() - began
        exit_s = holder.kill()
        back_s = card.back_s(before + 64 * (1 << 20))
    costs: list[float] = []
    for _ in range(20):
        looked = time.monotonic()
        card.used_bytes()
        card.of(0)
        costs.append(time.monotonic() - looked)
    return [
        ["8 GiB past it: seen, killed, gone, given back, ms",
         f"{seen_s * 1e3:.0f}, then {exit_s * 1e3:.0f}, then {back_s * 1e3:.0f}"],
        ["one look by NVML, ms: least / most of 20", f"{min(costs) * 1e3:.2f} / {max(costs) * 1e3:.2f}"],
    ]  # fmt: skip
