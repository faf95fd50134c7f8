"""Which GPU each worker sees: what NVML said once, and who is where. NVML itself is asked in gpu.py's helper.

On a machine without the driver nothing is asked. While the answer is outstanding a model's `device` is taken at its
word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mmsup.supervisor import gpu

DRIVER: Final = Path("/dev/nvidiactl")
CPU: Final = "cpu"


class Devices:
    """What a spawn needs to know of GPUs."""

    def __init__(self, environ: Mapping[str, str], driver: Path = DRIVER) -> None:
        self._environ = environ
        self._has_driver = driver.exists()
        self._gpus = None if self._has_driver else gpu.Gpus((), "the NVIDIA driver is not loaded")

    async def learn(self) -> None:
        """Ask NVML, if there can be anything to learn; within the helper's deadline."""
        if self._has_driver:
            found = await gpu.ask(self._environ)
            self._gpus = gpu.narrowed(found, self._environ.get("CUDA_VISIBLE_DEVICES"))

    def visible(self, device: str, taken: Iterable[str]) -> str:
        """CUDA_VISIBLE_DEVICES of a worker on this device; gpu.NoGpu if it is not here. `taken`: one word for each
        living worker that has a GPU, as this function gave it."""
        return gpu.visible_devices(device, self._gpus, Counter(each for each in taken if each))
