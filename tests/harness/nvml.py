"""A fake NVML: devices come from a JSON file that is read at each call."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1 << 30
MODULE = """
import json, pathlib

STATE = pathlib.Path(__file__).with_name("nvml.json")
NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0


class NVMLError(Exception):
    pass


class Of:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def cards():
    return json.loads(STATE.read_text())


def nvmlInit():
    pass


def nvmlDeviceGetCount():
    with STATE.with_name("looks").open("ab") as looks:
        looks.write(b".")
    return len(cards())


def nvmlDeviceGetPciInfo(handle):
    return Of(busId=card(handle)["pci"])


def nvmlDeviceGetMigMode(handle):
    return [int(bool(card(handle)["parts"])), 0]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(card(handle)["parts"]):
        raise NVMLError("Not Found")
    return (handle, index)


def card(handle):
    if isinstance(handle, tuple):
        return cards()[handle[0]]["parts"][handle[1]]
    return cards()[handle]


def nvmlDeviceGetHandleByIndex(index):
    if cards()[index]["lost"]:
        raise NVMLError("GPU is lost")
    return index


def nvmlDeviceGetUUID(handle):
    return card(handle)["uuid"]


def nvmlDeviceGetName(handle):
    return "NVIDIA H200"


def nvmlDeviceGetMemoryInfo(handle):
    seen = card(handle)
    if not seen["total_bytes"]:
        raise NVMLError("Not Supported")
    return Of(total=seen["total_bytes"], free=seen["free_bytes"])


def nvmlDeviceGetTotalEccErrors(handle, kind, since):
    if card(handle)["errors"] is None:
        raise NVMLError("Not Supported")
    return card(handle)["errors"]


def nvmlDeviceGetUtilizationRates(handle):
    return Of(gpu=25)


def nvmlDeviceGetPowerUsage(handle):
    return 300500


def nvmlDeviceGetEnforcedPowerLimit(handle):
    raise NVMLError("Not Supported")


def nvmlDeviceGetComputeRunningProcesses(handle):
    return [Of(pid=pid, usedGpuMemory=size) for pid, size in card(handle)["held"]]
"""


@dataclass(frozen=True)
class Card:
    """One device, as NVML reports it."""

    uuid: str
    total_bytes: int = 80 * GIB
    free_bytes: int = 80 * GIB
    held: tuple[tuple[int, int | None], ...] = ()
    """Processes on the device: pid and bytes."""
    errors: int | None = 0
    """Uncorrected ECC errors; None if the card does not count them."""
    lost: bool = False
    pci: str = "00000000:3B:00.0"
    parts: tuple[Card, ...] = ()
    """Into which it is divided (MIG)."""


class FakeNvml:
    """A folder in which `import pynvml` finds the fake, for the NVML helper alone."""

    def __init__(self, folder: Path, *cards: Card) -> None:
        self._folder = folder
        (folder / "pynvml.py").write_text(MODULE)
        (folder / "looks").touch()
        self.set_cards(*cards)
        self.env = {
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
            "MMSUP_GPU_DRIVER": str(folder / "pynvml.py"),
        }
        """Environment of the server."""

    def set_cards(self, *cards: Card) -> None:
        """Report these devices from the next call on."""
        made = self._folder / "nvml.new"
        made.write_text(json.dumps([asdict(each) for each in cards]))
        made.replace(self._folder / "nvml.json")

    def looks(self) -> int:
        """The number of calls so far."""
        return (self._folder / "looks").stat().st_size


def helpers_of(brain_pid: int) -> list[int]:
    """Pids of the NVML helpers of a controller."""
    children = Path(f"/proc/{brain_pid}/task/{brain_pid}/children").read_text().split()
    return [int(pid) for pid in children if b"mmsup.supervisor.gpu" in _command(pid)]


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
