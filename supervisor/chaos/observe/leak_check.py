"""What a server holds, from /proc, its control groups and its metrics; and what it holds more than before. I1 to I8.

A process that was replaced is compared by kinds of descriptor, not by pid. `Snapshot` and `differences` are pure.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MEMORY_GROWTH_LIMIT: Final = 32 << 20
"""What a long-lived process may have grown by, bytes; a leak of a slot or a reply for each fault is far more."""
ARENA_LINK: Final = "/memfd:mmsup-arena"
EXTENTS_PER_WORKER: Final = 8
"""Shared memory comes and goes with demand; so many extents for each worker are more than any demand here needs."""
PROC: Final = Path("/proc")
_ROLE: Final = re.compile(r"mmsup\.(?:supervisor\.)?(\w+)(?:\.cli)?")
_NUMBERED: Final = re.compile(r":?\[.*\]| \(deleted\)|/w\d+\.\d+|\d+")


@dataclass(frozen=True, slots=True)
class ProcessResources:
    """What one process of the house holds."""

    descriptors: Counter[str]
    threads: int
    memory_bytes: int
    """Of its own: what it shares with workers is bounded apart."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server at one moment."""

    processes: Counter[str]
    """How many of each role."""
    zombies: int
    server_processes: dict[str, ProcessResources]
    """Keeper, brain, gateways."""
    cgroups: int
    outside_holders: int
    """Processes outside the server that hold its memory."""
    shm_names: frozenset[str] = frozenset()
    """Names of ours in /dev/shm."""
    runtime_files: Counter[str] = field(default_factory=Counter[str])
    open_requests: float = 0.0
    used_bytes: float = 0.0


def take_snapshot(keeper_pid: int, runtime_dir: str, metrics: Iterable[tuple[str, str, float]]) -> Snapshot:
    """Everything now. ProcessLookupError or FileNotFoundError if something ends meanwhile: look again."""
    family = sorted(process_tree(keeper_pid), key=_start_ticks)  # a spare stays behind the gateway that it may follow
    roles: Counter[str] = Counter()
    house: dict[str, ProcessResources] = {}
    zombies = 0
    for pid in family:
        if _stat(pid)[0] == "Z":
            zombies += 1
            continue
        role = process_role(pid)
        roles[role] += 1
        if role != "worker":
            house[f"{role} {roles[role]}"] = _process_resources(pid)
    gauges = Counter[str]()
    for name, _, value in metrics:
        gauges[name] += value  # type: ignore[assignment] # a Counter adds floats as well
    return Snapshot(
        processes=roles,
        zombies=zombies,
        server_processes=house,
        cgroups=len(cgroup_directories(family)),
        outside_holders=_outside_holders(family),
        shm_names=frozenset(each for each in os.listdir("/dev/shm") if "mmsup" in each),  # noqa: S108 - it is looked at
        runtime_files=Counter(re.sub(r"\d+", "N", each.name) for each in Path(runtime_dir).rglob("*")),
        open_requests=gauges["mmsup_requests_open"],
        used_bytes=gauges["mmsup_arena_used_bytes"],
    )


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What is left behind, each a sentence that begins with its invariant."""
    found = []
    if after.shm_names - before.shm_names:
        found.append(f"I1 new in /dev/shm: {', '.join(sorted(after.shm_names - before.shm_names))}")
    if after.outside_holders > before.outside_holders:
        found.append(f"I1 {after.outside_holders} strangers hold shared memory")
    if after.zombies:
        found.append(f"I2 {after.zombies} children were not reaped")
    if after.processes != before.processes:
        found.append(f"I2 processes: {_counter_text(before.processes)} became {_counter_text(after.processes)}")
    for name, was in before.server_processes.items():
        found += _process_differences(name, was, after.server_processes.get(name))
    extents = sum(each.descriptors[ARENA_LINK] for each in after.server_processes.values())
    if extents > EXTENTS_PER_WORKER * after.processes["worker"]:
        found.append(f"I3 {extents} extents of shared memory are open for {after.processes['worker']} workers")
    if after.cgroups != before.cgroups:
        found.append(f"I5 {before.cgroups} control groups became {after.cgroups}")
    if after.runtime_files != before.runtime_files:
        found.append(
            f"I6 runtime folder: {_counter_text(before.runtime_files)} became {_counter_text(after.runtime_files)}"
        )
    if after.open_requests or after.used_bytes:
        found.append(f"I7 {after.open_requests:.0f} requests open, {after.used_bytes:.0f} bytes of slots in use")
    return found


def leak_counts(before: Snapshot, after: Snapshot) -> dict[str, int]:
    """The table's figures of what is left behind."""
    more = [
        sum(_new_descriptors(before.server_processes[name], each).values())
        for name, each in after.server_processes.items()
        if name in before.server_processes
    ]
    return {
        "segments": len(after.shm_names - before.shm_names) + after.outside_holders + int(after.used_bytes > 0),
        "descriptors": sum(more),
        "zombies": after.zombies,
        "cgroups": max(0, after.cgroups - before.cgroups),
    }


def survivors(family: Iterable[int], folders: Iterable[Path]) -> list[str]:
    """After the server's end: what of it is still there."""
    found = [
        f"I2 process {pid} ({process_role(pid) or 'zombie'}) outlived the server" for pid in family if _exists(pid)
    ]
    return found + [f"I5 control group {each.name} outlived the server" for each in folders if each.exists()]


def running(pids: Iterable[int]) -> list[int]:
    """Those that run; who only waits to be reaped does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [pid] if _stat(pid)[0] != "Z" else []
    return found


def process_tree(pid: int) -> list[int]:
    """This process and all its descendants."""
    children: dict[int, list[int]] = {}
    for each in _pids():
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(each)[1]), []).append(each)
    found = [pid]
    for each in found:  # grows while it is walked
        found += children.get(each, [])
    return found


def cgroup_directories(pids: Iterable[int]) -> set[Path]:
    """The groups beside those that these processes are in, below mmsup's own folder."""
    tops = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if "/mmsup_" in path and controllers in ("memory", ""):
                    tops.add(Path(f"/sys/fs/cgroup/{controllers}{path}").parent)
    return {each for top in tops for each in top.iterdir() if each.is_dir()}


def process_role(pid: int) -> str:
    """`keeper`, `run`, `gateway`, `worker`, or what else it runs."""
    words = (PROC / str(pid) / "cmdline").read_text().split("\0")
    for word in words:
        found = _ROLE.fullmatch(word)
        if found:
            return found[1]
    return " ".join(words[:3])


def _start_ticks(pid: int) -> int:
    """When it was started, in ticks of the kernel's."""
    return int(_stat(pid)[19])


def _process_resources(pid: int) -> ProcessResources:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return ProcessResources(_descriptors(pid), int(fields["Threads"][0]), int(fields["RssAnon"][0]) << 10)


def _descriptors(pid: int) -> Counter[str]:
    """By kind: `socket`, `pipe`, `memfd:mmsup-arena`, a file's name; a worker's output is open while it lives."""
    found: Counter[str] = Counter()
    for each in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kind = os.readlink(each)
            if "/logs/" not in kind:
                found[_NUMBERED.sub("", kind)] += 1
    return found


def _process_differences(name: str, was: ProcessResources, now: ProcessResources | None) -> list[str]:
    if now is None:
        return [f"I2 {name} is gone"]
    found = []
    more = _new_descriptors(was, now)
    if more:
        found.append(f"I3 {name} has more descriptors: {_counter_text(more)}")
    if now.memory_bytes > was.memory_bytes + MEMORY_GROWTH_LIMIT:
        found.append(f"I4 {name} grew by {(now.memory_bytes - was.memory_bytes) >> 20} MiB")
    if now.threads > was.threads:
        found.append(f"I8 {name} had {was.threads} threads and has {now.threads}")
    return found


def _new_descriptors(was: ProcessResources, now: ProcessResources) -> Counter[str]:
    """Descriptors that were not there before, by kind; shared memory has a bound of its own."""
    more = now.descriptors - was.descriptors
    del more[ARENA_LINK]
    return more


def _outside_holders(family: list[int]) -> int:
    ours = set().union(*(_memory_inodes(each) for each in family))
    return sum(bool(_memory_inodes(each) & ours) for each in set(_pids()) - set(family))


def _memory_inodes(pid: int) -> set[int]:
    found = set()
    with contextlib.suppress(OSError):
        for each in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:mmsup" in os.readlink(each):
                    found.add(each.stat().st_ino)
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, …"""
    return (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()


def _pids() -> list[int]:
    return [int(each) for each in os.listdir(PROC) if each.isdigit()]


def _exists(pid: int) -> bool:
    return (PROC / str(pid)).exists()


def _counter_text(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items())) or "nothing"
