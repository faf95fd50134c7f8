"""Samples the memory of all workers and zygotes of a server while something else runs.

What counts is what the memory budget counts: anonymous and shared memory, every page once however many processes share
it. Where there are control groups the kernel adds it up (v1: of the folder that holds all of them, at one moment); else
it is the proportional set size by kind, of /proc/PID/smaps_rollup, one process after the other. Pages of files, which
the kernel may drop, stand beside it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tree

from mmsup.supervisor.linux.cgroup import parse_field, read_file
from mmsup.supervisor.linux.cgroup_backend import CORE, ROOT, top_name

PERIOD_S = 0.5
ZYGOTE, WORKER, CHILD = "mmsup.worker.zygote", "mmsup.worker", "child"


@dataclass(frozen=True)
class MemorySample:
    """Of all workers and zygotes together, bytes."""

    at_s: float
    """By the monotonic clock."""
    counted: int
    """Anonymous and shared memory."""
    files: int
    """Of mapped files."""
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


def grouped_bytes(state_dir: Path, root: Path = ROOT) -> tuple[int, int] | None:
    """Anonymous and shared memory, and that of mapped files, of all workers and zygotes of the server with this state
    folder; None without control groups."""
    top = root / "memory" / top_name(str(state_dir))
    if stat := read_file(top / "memory.stat"):
        held = parse_field(stat, "total_rss") + parse_field(stat, "total_shmem")
        return held, parse_field(stat, "total_mapped_file")
    groups = [each for each in root.glob(f"**/{top.name}/*/memory.stat") if each.parent.name != CORE]
    stats = [read_file(each) for each in groups]
    held = sum(parse_field(stat, name) for stat in stats for name in ("anon", "shmem"))
    return (held, sum(parse_field(stat, "file_mapped") for stat in stats)) if groups else None


def sample(keeper: int, state_dir: Path) -> MemorySample:
    """What there is now. Without control groups a process that begins or ends meanwhile may be left out."""
    at_s, counted, files = time.monotonic(), 0, 0
    parents = {pid: int(fields[1]) for pid, fields in tree.descendants().items()}
    found = roles(parents, {pid: role(_words(pid)) for pid, parent in parents.items() if parent == keeper}, keeper)
    workers = sum(kind == WORKER for kind in found.values())
    if (grouped := grouped_bytes(state_dir)) is not None:
        return MemorySample(at_s, *grouped, workers)
    for pid in found:
        with contextlib.suppress(OSError, LookupError):  # it has ended meanwhile
            held, mapped = rollup_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
            counted, files = counted + held, files + mapped
    return MemorySample(at_s, counted, files, workers)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


class MemoryCurve:
    """Samples in a thread of its own, from the start of the block to its end."""

    def __init__(self, keeper: int, state_dir: Path, on_sample: Callable[[], None] = lambda: None) -> None:
        """`on_sample`: called after each, in that thread."""
        self.samples: list[MemorySample] = []
        self._keeper = keeper
        self._state_dir = state_dir
        self._on_sample = on_sample
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
            self.samples.append(sample(self._keeper, self._state_dir))
            self._on_sample()
        self._on_sample()
