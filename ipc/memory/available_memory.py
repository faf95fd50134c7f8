"""How much memory can still be allocated: by the machine, and by every control group that this process is in.

In a container the machine has more than the container may use. Beyond the limit of a group the kernel kills instead of
returning an error, so what is asked for is compared with this first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mmsup.ipc.memory.kernel_file import read_kernel_file

MEMINFO: Final = Path("/proc/meminfo")
OWN_CGROUP_FILE: Final = Path("/proc/self/cgroup")
ROOT: Final = Path("/sys/fs/cgroup")
_V2_FILES: Final = ("memory.max", "memory.current", "inactive_file")
_V1_FILES: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Limit, usage, and the field of `memory.stat` that counts page cache which the kernel frees when memory is short."""
_NO_LIMIT: Final = 1 << 62
"""v1 reports a missing limit as the largest number of pages; no limit is this large."""


def available_bytes(meminfo: Path = MEMINFO, own_file: Path = OWN_CGROUP_FILE, root: Path = ROOT) -> int:
    """MemAvailable of the machine, or what the tightest control group leaves if that is less; never below 0."""
    machine_bytes = _machine_bytes(meminfo, "MemAvailable")
    return max(0, min([machine_bytes, *(left for _, left in _groups(own_file, root))]))


def total_bytes(meminfo: Path = MEMINFO, own_file: Path = OWN_CGROUP_FILE, root: Path = ROOT) -> int:
    """The memory of the machine, or the tightest limit of a control group if that is less."""
    return min([_machine_bytes(meminfo, "MemTotal"), *(limit for limit, _ in _groups(own_file, root))])


def free_swap_bytes(meminfo: Path = MEMINFO) -> int:
    return _machine_bytes(meminfo, "SwapFree")


def _machine_bytes(meminfo: Path, name: str) -> int:
    for line in read_kernel_file(meminfo).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"this kernel's meminfo has no {name}")


def _groups(own_file: Path, root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each group that has one, and what it leaves: from this process's own group up to the root of what is
    mounted here."""
    for line in _read(own_file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, files = root, _V2_FILES
        elif "memory" in controllers.split(","):
            base, files = root / "memory", _V1_FILES
        else:
            continue
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):
            with contextlib.suppress(ValueError):  # no such file, or `max`
                limit = int(_read(folder / files[0]))
                if limit < _NO_LIMIT:
                    usage = int(_read(folder / files[1]))
                    yield limit, limit - usage + _field(_read(folder / "memory.stat"), files[2])
            if folder == base:
                break


def _field(text: str, name: str) -> int:
    return next((int(value) for key, _, value in (line.partition(" ") for line in text.splitlines()) if key == name), 0)


def _read(path: Path) -> str:
    """Empty if there is no such file here."""
    with contextlib.suppress(OSError):
        return read_kernel_file(path)
    return ""
