"""Compares the resources that a server holds before and after a run: the invariants I1 to I8 of docs/chaos.md.

Sources are /proc, control groups and metrics. Processes are compared by role, descriptors by kind, so that a restarted
process is comparable with its predecessor. `Snapshot` and `differences` are pure.
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
"""Bytes by which a long-lived process may grow; a leak of a slot or a reply per fault is far more."""
ARENA_LINK: Final = "/memfd:mmsup-arena"
EXTENTS_PER_WORKER: Final = 8
"""Extents of shared memory are allocated on demand; the load here never needs as many per worker."""
PROC: Final = Path("/proc")
_ROLE: Final = re.compile(r"mmsup\.(?:supervisor\.)?(\w+)(?:\.cli)?")
_NUMBERED: Final = re.compile(r":?\[.*\]| \(deleted\)|/w\d+\.\d+|\d+")


@dataclass(frozen=True, slots=True)
class ProcessResources:
    descriptors: Counter[str]
    threads: int
    memory_bytes: int
    """Anonymous memory only: shared memory has the bound EXTENTS_PER_WORKER."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    processes: Counter[str]
    """Number of processes by role."""
    zombies: int
    server_processes: dict[str, ProcessResources]
    """Keeper, controller and gateways, as `gateway 1`."""
    cgroups: int
    outside_holders: int
    """Processes outside the server that have its shared memory open."""
    shm_names: frozenset[str] = frozenset()
    """Names with `mmsup` in /dev/shm, without those of clients, who call theirs `mmsup_…`."""
    runtime_files: Counter[str] = field(default_factory=Counter[str])
    open_requests: float = 0.0
    used_bytes: float = 0.0


def take_snapshot(keeper_pid: int, runtime_dir: str, metrics: Iterable[tuple[str, str, float]]) -> Snapshot:
    """The resources now. OSError if a process exits meanwhile: try again."""
    # By their start, so that a standby gateway has the higher number.
    pids = sorted(process_tree(keeper_pid), key=lambda pid: int(_stat(pid)[19]))
    roles: Counter[str] = Counter()
    server_processes: dict[str, ProcessResources] = {}
    zombies = 0
    for pid in pids:
        if _stat(pid)[0] == "Z":
            zombies += 1
            continue
        role = process_role(pid)
        roles[role] += 1
        if role != "worker":
            server_processes[f"{role} {roles[role]}"] = _process_resources(pid)
    gauges = Counter[str]()
    for name, _, value in metrics:
        gauges[name] += value  # type: ignore[assignment] # a Counter adds floats as well
    return Snapshot(
        processes=roles,
        zombies=zombies,
        server_processes=server_processes,
        cgroups=len(cgroup_directories(pids)),
        outside_holders=_outside_holders(pids),
        shm_names=_shm_names(),
        runtime_files=Counter(re.sub(r"\d+", "N", each.name) for each in Path(runtime_dir).rglob("*")),
        open_requests=gauges["mmsup_requests_open"],
        used_bytes=gauges["mmsup_arena_used_bytes"],
    )


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What leaked: sentences, each with its invariant first."""
    found = []
    if after.shm_names - before.shm_names:
        found.append(f"I1 new in /dev/shm: {', '.join(sorted(after.shm_names - before.shm_names))}")
    if after.outside_holders > before.outside_holders:
        found.append(f"I1 {after.outside_holders} processes outside the server hold its memory")
    if after.zombies:
        found.append(f"I2 {after.zombies} children were not reaped")
    if after.processes != before.processes:
        found.append(f"I2 processes: {_counter_text(before.processes)} became {_counter_text(after.processes)}")
    for name, each in before.server_processes.items():
        found += _process_differences(name, each, after.server_processes.get(name))
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


def survivors(pids: Iterable[int], cgroups: Iterable[Path]) -> list[str]:
    """Processes and control groups that exist after the server has exited."""
    alive = [pid for pid in pids if (PROC / str(pid)).exists()]
    found = [f"I2 process {pid} ({process_role(pid) or 'zombie'}) outlived the server" for pid in alive]
    return found + [f"I5 control group {each.name} outlived the server" for each in cgroups if each.exists()]


def running(pids: Iterable[int]) -> list[int]:
    """Those that run; zombies do not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [pid] if _stat(pid)[0] != "Z" else []
    return found


def process_tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for each in _pids():
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(each)[1]), []).append(each)
    found = [pid]
    for each in found:  # grows during the iteration
        found += children.get(each, [])
    return found


def cgroup_directories(pids: Iterable[int]) -> set[Path]:
    """The server's control groups: those of these processes, and their siblings."""
    parents = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if "/mmsup_" in path and controllers in ("memory", ""):
                    parents.add(Path(f"/sys/fs/cgroup/{controllers}{path}").parent)
    return {each for parent in parents for each in parent.iterdir() if each.is_dir()}


def process_role(pid: int) -> str:
    """`keeper`, `controller`, `gateway`, `worker`, else the start of its command line."""
    words = (PROC / str(pid) / "cmdline").read_text().split("\0")
    for word in words:
        found = _ROLE.fullmatch(word)
        if found:
            return found[1]
    return " ".join(words[:3])


def _process_resources(pid: int) -> ProcessResources:
    lines = (PROC / str(pid) / "status").read_text().splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return ProcessResources(_descriptors(pid), int(fields["Threads"][0]), int(fields["RssAnon"][0]) << 10)


def _descriptors(pid: int) -> Counter[str]:
    """By kind: `socket`, `pipe`, `/memfd:mmsup-arena`, a path. Without models' log files, which are open while a worker
    lives."""
    found: Counter[str] = Counter()
    for each in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kind = os.readlink(each)
            if "/logs/" not in kind:
                found[_NUMBERED.sub("", kind)] += 1
    return found


def _process_differences(name: str, before: ProcessResources, after: ProcessResources | None) -> list[str]:
    if after is None:
        return [f"I2 {name} is gone"]
    found = []
    more = _new_descriptors(before, after)
    if more:
        found.append(f"I3 {name} has more descriptors: {_counter_text(more)}")
    if after.memory_bytes > before.memory_bytes + MEMORY_GROWTH_LIMIT:
        found.append(f"I4 {name} grew by {(after.memory_bytes - before.memory_bytes) >> 20} MiB")
    if after.threads > before.threads:
        found.append(f"I8 {name} had {before.threads} threads and has {after.threads}")
    return found


def _new_descriptors(before: ProcessResources, after: ProcessResources) -> Counter[str]:
    """Additional descriptors by kind, without shared memory, which has a bound of its own."""
    more = after.descriptors - before.descriptors
    del more[ARENA_LINK]
    return more


def _outside_holders(pids: list[int]) -> int:
    inodes = set().union(*(_memory_inodes(each) for each in pids))
    return sum(bool(_memory_inodes(each) & inodes) for each in set(_pids()) - set(pids))


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


def _counter_text(counted: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items())) or "nothing"


def _shm_names() -> frozenset[str]:
    names = os.listdir("/dev/shm")  # noqa: S108 - only listed
    return frozenset(each for each in names if "mmsup" in each and not each.startswith("mmsup_"))
