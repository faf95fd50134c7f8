"""Samples the memory of all workers and zygotes of a server while something else runs.

What counts is what the memory budget counts: anonymous and shared memory, every page once however many processes share
it (the proportional set size by kind, of /proc/PID/smaps_rollup). Pages of files, which the kernel may drop, stand
beside it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tree

PERIOD_S = 1.0
ZYGOTE, WORKER, CHILD = "mmsup.worker.zygote", "mmsup.worker", "child"


@dataclass(frozen=True)
class MemorySample:
    """Of all workers and zygotes together, bytes."""

    at_s: float
    """By the monotonic clock."""
    counted: int
    """Anonymous and shared memory."""
    files: int
    """Proportional share of mapped files."""
    workers: int
    """How many workers there were."""


def role(words: list[str]) -> str:
    """WORKER, ZYGOTE or nothing, by the command line of a process."""
    return next((word for word in words if word in (WORKER, ZYGOTE)), "")


def rollup_bytes(text: str) -> tuple[int, int]:
    """Anonymous and shared memory, and that of files, of the text of smaps_rollup."""
    parts = {name: int(rest.split()[0]) << 10 for name, _, rest in _fields(text) if name.startswith("Pss")}
    return parts["Pss_Anon"] + parts["Pss_Shmem"], parts["Pss_File"]


def _fields(text: str) -> Iterator[tuple[str, str, str]]:
    return (line.partition(":") for line in text.splitlines()[1:])


def roles(parents: Mapping[int, int], kinds: Mapping[int, str], keeper: int) -> dict[int, str]:
    """The processes that count: workers and zygotes, which are children of the keeper, and what they have started."""
    found = {pid: kinds[pid] for pid, parent in parents.items() if parent == keeper and kinds.get(pid)}
    grown = True
    while grown:
        more = {pid: CHILD for pid, parent in parents.items() if parent in found and pid not in found}
        found |= more
        grown = bool(more)
    return found


def sample(keeper: int) -> MemorySample:
    """What there is now. A process that begins or ends meanwhile may be left out."""
    at_s, counted, files = time.monotonic(), 0, 0
    parents = {pid: int(fields[1]) for pid, fields in tree.descendants().items()}
    found = roles(parents, {pid: role(_words(pid)) for pid, parent in parents.items() if parent == keeper}, keeper)
    for pid in found:
        with contextlib.suppress(OSError, LookupError):  # it has ended meanwhile
            held, mapped = rollup_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
            counted, files = counted + held, files + mapped
    return MemorySample(at_s, counted, files, sum(kind == WORKER for kind in found.values()))


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


class MemoryCurve:
    """Samples in a thread of its own, from the start of the block to its end."""

    def __init__(self, keeper: int) -> None:
        self.samples: list[MemorySample] = []
        self._keeper = keeper
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory")

    def __enter__(self) -> MemoryCurve:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, from_s: float, to_s: float) -> list[MemorySample]:
        """The samples of a span of the monotonic clock."""
        return [each for each in self.samples if from_s <= each.at_s <= to_s]

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.samples.append(sample(self._keeper))
