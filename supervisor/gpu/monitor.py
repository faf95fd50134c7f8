"""Asks NVML about the GPUs every two seconds, and at once where something has changed.

On a machine without the driver nothing is asked. Which devices there are and how they are numbered is learnt once: a
device that stops answering renumbers no other. While NVML does not answer, none of its earlier figures are used, and
the pauses between the tries grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.gpu.inventory import UNKNOWN, Gpu, GpuLoad, Gpus, gpu_label, visible_gpus
from mmsup.supervisor.gpu.memory_release import GpuSnapshot
from mmsup.supervisor.gpu.nvml_client import NvmlClient, NvmlTimeout
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.processes import backoff

INTERVAL_S: Final = 2.0
AWAITED_INTERVAL_S: Final = 0.25
"""Where a load waits for the next answer."""


class GpuMonitor:
    """From `query_once` to `close`."""

    def __init__(self, event_log: EventLog, environ: Mapping[str, str], driver: str) -> None:
        """`driver`: a file that exists where the driver is loaded."""
        self.gpus: Gpus | None = None
        """The devices that models are bound to; None: not known yet."""
        self.latest: Gpus | None = None
        """NVML's last answer; None while it does not answer."""
        self.asked_s = 0.0
        """When the question of that answer was sent; 0: never."""
        self.on_update: Callable[[], bool] = lambda: False
        """Called after each query, failed ones included; returns whether a load waits for the next."""
        self._event_log = event_log
        self._visible = environ.get("CUDA_VISIBLE_DEVICES")
        self._client = NvmlClient(environ)
        self._failures = 0
        self._refresh = asyncio.Event()
        self._rng = random.Random()
        self._has_driver = Path(driver).exists()
        if not self._has_driver:
            self.gpus = Gpus((), "the NVIDIA driver is not loaded")

    def restore(self, devices: list[Gpu]) -> None:
        if devices:
            self.gpus = Gpus(tuple(devices))

    async def query_once(self) -> None:
        """Learn which devices there are, if there is a driver."""
        if self._has_driver:
            await self._query()

    async def run(self) -> None:
        while self._has_driver:
            is_awaited = await self._query()
            pause_s = AWAITED_INTERVAL_S if is_awaited else INTERVAL_S
            if self._failures:
                pause_s = max(backoff.delay_s(self._failures, self._rng), INTERVAL_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._refresh.wait()

    def refresh(self) -> None:
        """Query now, unless NVML does not answer."""
        if not self._failures:
            self._refresh.set()

    async def close(self) -> None:
        await self._client.close()

    def find(self, uuid: str) -> Gpu | None:
        """A device as NVML showed it last; None if it does not now."""
        return self.latest.find(uuid) if self.latest is not None else None

    def snapshots(self) -> dict[str, GpuSnapshot]:
        devices = self.latest.devices if self.latest is not None else ()
        return {each.uuid: GpuSnapshot(each, self.asked_s) for each in devices}

    def why_no_gpu(self) -> str:
        return self.gpus.why if self.gpus is not None else "NVML has not answered yet"

    def label(self, device: str) -> str:
        """What CUDA_VISIBLE_DEVICES of a worker holds, in words."""
        found = self.gpus.find(device) if self.gpus is not None else None
        return device if self.gpus is None or found is None else gpu_label(self.gpus, found)

    def status(self, uuid: str) -> dict[str, Any]:  # JSON
        """A device for people; figures that NVML does not show now are None."""
        known = self.gpus.find(uuid) if self.gpus is not None else None
        seen = self.find(uuid)
        return {
            "name": known.name if known is not None else "",
            "stale": seen is None,
            "age_s": round(time.monotonic() - self.asked_s, 1) if self.asked_s else None,
            "memory_total_bytes": seen.total_bytes if seen is not None else None,
            "memory_used_bytes": seen.total_bytes - seen.free_bytes if seen is not None else None,
            **_load_figures(seen.load if seen is not None else GpuLoad()),
        }

    def driver_errors(self, device: str) -> str:
        """What the driver itself counts against a device; empty if nothing."""
        found = self.find(device)
        if found is None:
            return "NVML does not list it any more" if self.latest is not None and device.startswith("GPU-") else ""
        errors = found.memory_errors
        return f"NVML counts {errors} memory errors there that nothing corrected" if errors else ""

    async def _query(self) -> bool:
        self._refresh.clear()
        asked_s = time.monotonic()
        try:
            found = await self._client.query()
        except NvmlTimeout as timeout:
            found = Gpus((), str(timeout))
        if found.devices:
            self._on_answer(found, asked_s)
        else:
            self._on_failure(found)
        return self.on_update()

    def _on_answer(self, found: Gpus, asked_s: float) -> None:
        if self._failures:
            self._event_log.record("gpu_back", f"NVML answers again, of {len(found.devices)} devices")
        self._failures, self.latest, self.asked_s = 0, found, asked_s
        if self.gpus is None or not self.gpus.devices:
            self.gpus = visible_gpus(found, self._visible)

    def _on_failure(self, nothing: Gpus) -> None:
        if not self._failures:
            text = f"{nothing.why}; earlier figures of the memory of GPUs are no longer used"
            self._event_log.record("gpu_silent", text)
        self._failures += 1
        self.latest = None
        if self.gpus is None:
            self.gpus = nothing


def _load_figures(load: GpuLoad) -> dict[str, Any]:  # JSON
    return {name: None if value == UNKNOWN else value for name, value in asdict(load).items()}
