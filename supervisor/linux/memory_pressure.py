"""What the kernel says of a shortage of memory: stalls (PSI) of the machine and of the control groups that this process
is in, and the soft limits (`memory.high`) of those groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MACHINE: Final = Path("/proc/pressure/memory")
OWN_CGROUP_FILE: Final = Path("/proc/self/cgroup")
ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Stalls:
    """Shares of the last ten seconds, in per cent."""

    some: float = 0.0
    """In which a task at least waited for memory."""
    full: float = 0.0
    """In which all of them did."""


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    machine: Stalls
    own: Stalls
    """Of the group, among those that this process is in, that stalls most (cgroup v2)."""
    high_events: int = 0
    """How often one of these groups was over its `memory.high` so far."""
    over_high_bytes: int = 0
    """By how much, in the worst one; negative: how far below. 0 without such a limit."""


def read_pressure(machine: Path = MACHINE, own_file: Path = OWN_CGROUP_FILE, root: Path = ROOT) -> MemoryPressure:
    """Zeros for what this kernel does not tell."""
    folders = list(_folders(own_file, root))
    own = [_stalls(folder / "memory.pressure") for folder in folders]
    highs = [high for folder in folders if (high := _over_high(folder)) is not None]
    events = sum(_number(line, "high") for folder in folders for line in _lines(folder / "memory.events"))
    worst = Stalls(max((each.some for each in own), default=0.0), max((each.full for each in own), default=0.0))
    return MemoryPressure(_stalls(machine), worst, events, max(highs, default=0))


def _folders(own_file: Path, root: Path) -> Iterator[Path]:
    """Of this process's own v2 group and those above it, without the root of what is mounted here, the machine."""
    for line in _lines(own_file):
        _, controllers, path = line.split(":", 2)
        if controllers:
            continue
        for base in (root, root / "unified"):
            own = base / path.lstrip("/")
            if (base / "cgroup.controllers").exists():
                yield from (each for each in (own, *own.parents) if base in each.parents)


def _stalls(file: Path) -> Stalls:
    found = {kind: float(rest.partition("avg10=")[2].partition(" ")[0] or 0) for kind, rest in _pairs(file)}
    return Stalls(found.get("some", 0.0), found.get("full", 0.0))


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(file):
        kind, _, rest = line.partition(" ")
        yield kind, rest


def _over_high(folder: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
        return int((folder / "memory.current").read_text()) - int((folder / "memory.high").read_text())
    return None


def _number(line: str, name: str) -> int:
    key, _, value = line.partition(" ")
    return int(value) if key == name else 0


def _lines(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().splitlines()
    return []
