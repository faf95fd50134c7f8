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
from mmsup.supervisor.gpu.nvml_client import NvmlClient, NvmlTimeout
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.processes import backoff

INTERVAL_S: Final = 2.0
AWAITED_INTERVAL_S: Final = 0.25
"""Where somebody waits for what the next look says."""


class GpuMonitor:
    """From `learn` to `close`."""

    def __init__(self, journal: EventLog, environ: Mapping[str, str], driver: str) -> None:
        """`driver`: the file that is there where the driver is."""
        self.gpus: inventory.Gpus | None = None
        """The devices that models are bound to; None: nobody has asked yet."""
        self.latest: inventory.Gpus | None = None
        """What NVML said last; None while it is silent."""
        self.asked_s = 0.0
        """When it was asked what it answered last; 0: never."""
        self.on_update: Callable[[], bool] = lambda: False
        """Called after each look, also one in vain; whether somebody waits for the next."""
        self._event_log = journal
        self._visible = environ.get("CUDA_VISIBLE_DEVICES")
        self._client = NvmlClient(environ)
        self._failures = 0
        self._refresh = asyncio.Event()
        self._rng = random.Random()
        self._has_driver = Path(driver).exists()
        if not self._has_driver:
            self.gpus = inventory.Gpus((), "the NVIDIA driver is not loaded")

    def restore(self, devices: list[inventory.Gpu]) -> None:
        """As the brain before us had learnt them."""
        if devices:
            self.gpus = inventory.Gpus(tuple(devices))

    async def query_once(self) -> None:
        """Ask once, if there can be anything to learn."""
        if self._has_driver:
            await self._query()

    async def run(self) -> None:
        """Ask again and again, without an end."""
        while self._has_driver:
            is_awaited = await self._query()
            pause_s = AWAITED_INTERVAL_S if is_awaited else INTERVAL_S
            if self._failures:
                pause_s = max(backoff.delay_s(self._failures, self._rng), INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._refresh.wait()

    def refresh(self) -> None:
        """Ask now, unless NVML is silent."""
        if not self._failures:
            self._refresh.set()

    async def close(self) -> None:
        """End the helper."""
        await self._client.close()

    def find(self, uuid: str) -> inventory.Gpu | None:
        """A device as it was seen last; None if NVML does not say."""
        return self.latest.find(uuid) if self.latest is not None else None

    def label(self, word: str) -> str:
        """What stands in CUDA_VISIBLE_DEVICES, in words."""
        found = self.gpus.find(word) if self.gpus is not None else None
        return word if self.gpus is None or found is None else inventory.gpu_label(self.gpus, found)

    def driver_errors(self, word: str) -> str:
        """What the driver itself counts against a device; empty if nothing."""
        device = self.find(word)
        if device is None:
            return "NVML does not list it any more" if self.latest is not None and word.startswith("GPU-") else ""
        errors = device.memory_errors
        return f"NVML counts {errors} memory errors there that nothing corrected" if errors else ""

    async def _query(self) -> bool:
        self._refresh.clear()
        asked_s = time.monotonic()
        try:
            found = await self._client.query()
        except NvmlTimeout as silence:
            found = inventory.Gpus((), str(silence))
        if found.devices:
            self._on_answer(found, asked_s)
        else:
            self._on_failure(found)
        return self.on_update()

    def _on_answer(self, found: inventory.Gpus, asked_s: float) -> None:
        if self._failures:
            self._event_log.record("gpu_back", f"NVML answers again, of {len(found.devices)} devices")
        self._failures, self.latest, self.asked_s = 0, found, asked_s
        if self.gpus is None or not self.gpus.devices:
            self.gpus = inventory.visible_gpus(found, self._visible)

    def _on_failure(self, nothing: inventory.Gpus) -> None:
        if not self._failures:
            text = f"{nothing.why}; what was known of the memory of GPUs is taken for true no longer"
            self._event_log.record("gpu_silent", text)
        self._failures += 1
        self.latest = None
        if self.gpus is None:
            self.gpus = nothing
