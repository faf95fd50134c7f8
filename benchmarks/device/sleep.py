"""Sleep: what a process holds goes to the host and comes back, by the driver's checkpoint of processes.

Lock, checkpoint, restore, unlock of the CUDA driver API (driver 570 and later), called from outside.
"""

from __future__ import annotations

import ctypes
import time

from device.held import ContextHolder, GpuCard

HEADS = [
    "held, GiB",
    "lock, ms",
    "checkpoint, s (GB/s)",
    "still used then, MiB",
    "restore, s (GB/s)",
    "unlock, ms",
    "works after",
]
GIB, MIB = 1 << 30, 1 << 20


class CudaDriverApi:
    """The four calls."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.cuInit(0)

    def call(self, name: str, pid: int) -> tuple[int, float]:
        """Its code, and the seconds that it took."""
        function = getattr(self._library, f"cuCheckpointProcess{name}")
        began = time.monotonic()
        code = int(function(ctypes.c_int(pid), None))
        return code, time.monotonic() - began


def cycle(card: GpuCard, driver: CudaDriverApi, amount: int) -> list[str]:
    """Once round."""
    before = card.used_bytes()
    with ContextHolder() as holder:
        holder.send("hold", amount * GIB)
        size = (card.used_bytes() - before) / 1e9
        done: dict[str, float] = {}
        left = 0
        for name in ("Lock", "Checkpoint", "Restore", "Unlock"):
            code, done[name] = driver.call(name, holder.pid)
            if code:
                return [str(amount), *[""] * 5, f"{name}: error {code}"]
            if name == "Checkpoint":
                left = (card.used_bytes() - before) // MIB
        works = holder.send("try", MIB)
    speeds = [f"{done[name]:.2f} ({size / done[name]:.1f})" for name in ("Checkpoint", "Restore")]
    lock, unlock = (f"{done[name] * 1e3:.1f}" for name in ("Lock", "Unlock"))
    return [str(amount), lock, speeds[0], str(left), speeds[1], unlock, works]


def wake_without_room(card: GpuCard, driver: CudaDriverApi) -> list[str]:
    """A wake that meets too little memory, and once more when it is there."""
    amount = int(card.total_bytes() * 0.6) // GIB
    with ContextHolder() as sleeper:
        sleeper.send("hold", amount * GIB)
        codes = [driver.call(name, sleeper.pid)[0] for name in ("Lock", "Checkpoint")]
        with ContextHolder() as other:
            other.send("hold", amount * GIB)
            codes.append(driver.call("Restore", sleeper.pid)[0])
        card.released_after_s(8 * GIB)
        codes += [driver.call(name, sleeper.pid)[0] for name in ("Restore", "Unlock")]
        try:
            works = sleeper.send("try", MIB) if not codes[-1] else "not tried"
        except RuntimeError as error:
            works = str(error)
    words = ", ".join(f"{name} {code}" for name, code in zip(
        ("lock", "checkpoint", "restore without room", "restore with room", "unlock"), codes, strict=True
    ))  # fmt: skip
    return [f"{amount}, the room taken meanwhile", *[""] * 5, f"codes: {words}; {works}"]


def rows(card: GpuCard, held: tuple[int, ...] = (1, 10, 40)) -> list[list[str]]:
    """A line for each amount, and one for a wake without room."""
    driver = CudaDriverApi()
    found = [cycle(card, driver, amount) for amount in held]
    if all(each[-1] == "allowed" for each in found):
        found.append(wake_without_room(card, driver))
    return found
