"""When the memory of a killed process is back."""

from __future__ import annotations

from device.held import ContextHolder, GpuCard

HEADS = ["held, GiB", "exit known after, ms", "memory back after the exit, ms", "in all, ms"]
GIB = 1 << 30


def rows(card: GpuCard, held: tuple[int, ...] = (1, 20, 60)) -> list[list[str]]:
    """A line for each amount, in GiB; those that the card has."""
    found: list[list[str]] = []
    for amount in held:
        if amount * GIB > card.total_bytes() * 0.9:
            continue
        before = card.used_bytes()
        with ContextHolder() as holder:
            holder.send("hold", amount * GIB)
            exit_s = holder.kill()
            back_s = card.released_after_s(before + 64 * (1 << 20))
        found.append([f"{amount}", *(f"{each * 1e3:.1f}" for each in (exit_s, back_s, exit_s + back_s))])
    return found
