"""What NVML says of the GPUs, asked every two seconds, and at once where something has changed.

On a machine without the driver nothing is asked. Which devices there are and how they are numbered is learnt once: that
one of them does not answer any more moves no other. While NVML is silent (probe.py) nothing that it had said is taken
for true, and the pauses between two tries grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mmsup.supervisor.gpu import inventory
from mmsup.supervisor.gpu.nvml_client import Probe, Silent
from mmsup.supervisor.observability.event_log import Journal
from mmsup.supervisor.processes import backoff

EVERY_S: Final = 2.0
SOON_S: Final = 0.25
"""Where somebody waits for what the next look says."""


class Lookout:
    """From `learn` to `close`."""

    def __init__(self, journal: Journal, environ: Mapping[str, str], driver: str) -> None:
        """`driver`: the file that is there where the driver is."""
        self.gpus: inventory.Gpus | None = None
        """The devices that models are bound to; None: nobody has asked yet."""
        self.seen: inventory.Gpus | None = None
        """What NVML said last; None while it is silent."""
        self.asked_s = 0.0
        """When it was asked what it answered last; 0: never."""
        self.on_look: Callable[[], bool] = lambda: False
        """Called after each look, also one in vain; whether somebody waits for the next."""
        self._journal = journal
        self._shown = environ.get("CUDA_VISIBLE_DEVICES")
        self._probe = Probe(environ)
        self._misses = 0
        self._due = asyncio.Event()
        self._rng = random.Random()
        self._has_driver = Path(driver).exists()
        if not self._has_driver:
            self.gpus = inventory.Gpus((), "the NVIDIA driver is not loaded")

    def restore(self, devices: list[inventory.Gpu]) -> None:
        """As the brain before us had learnt them."""
        if devices:
            self.gpus = inventory.Gpus(tuple(devices))

    async def learn(self) -> None:
        """Ask once, if there can be anything to learn."""
        if self._has_driver:
            await self._look()

    async def watch(self) -> None:
        """Ask again and again, without an end."""
        while self._has_driver:
            is_awaited = await self._look()
            pause_s = SOON_S if is_awaited else EVERY_S
            if self._misses:
                pause_s = max(backoff.delay_s(self._misses, self._rng), EVERY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._due.wait()

    def look(self) -> None:
        """Ask now, unless NVML is silent."""
        if not self._misses:
            self._due.set()

    async def close(self) -> None:
        """End the helper."""
        await self._probe.close()

    def find(self, uuid: str) -> inventory.Gpu | None:
        """A device as it was seen last; None if NVML does not say."""
        return self.seen.find(uuid) if self.seen is not None else None

    def title(self, word: str) -> str:
        """What stands in CUDA_VISIBLE_DEVICES, in words."""
        found = self.gpus.find(word) if self.gpus is not None else None
        return word if self.gpus is None or found is None else inventory.title(self.gpus, found)

    def says_against(self, word: str) -> str:
        """What the driver itself counts against a device; empty if nothing."""
        device = self.find(word)
        if device is None:
            return "NVML does not list it any more" if self.seen is not None and word.startswith("GPU-") else ""
        errors = device.memory_errors
        return f"NVML counts {errors} memory errors there that nothing corrected" if errors else ""

    async def _look(self) -> bool:
        self._due.clear()
        asked_s = time.monotonic()
        try:
            found = await self._probe.ask()
        except Silent as silence:
            found = inventory.Gpus((), str(silence))
        if found.devices:
            self._see(found, asked_s)
        else:
            self._miss(found)
        return self.on_look()

    def _see(self, found: inventory.Gpus, asked_s: float) -> None:
        if self._misses:
            self._journal.record("gpu_back", f"NVML answers again, of {len(found.devices)} devices")
        self._misses, self.seen, self.asked_s = 0, found, asked_s
        if self.gpus is None or not self.gpus.devices:
            self.gpus = inventory.narrowed(found, self._shown)

    def _miss(self, nothing: inventory.Gpus) -> None:
        if not self._misses:
            text = f"{nothing.why}; what was known of the memory of GPUs is taken for true no longer"
            self._journal.record("gpu_silent", text)
        self._misses += 1
        self.seen = None
        if self.gpus is None:
            self.gpus = nothing
