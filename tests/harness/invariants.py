"""What must be as before when a fault is over: I1 to I8 of the fault table.

`before` is taken warm. A process that the fault replaced is compared by kinds of descriptor, not by pid.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.server import Server, select_pause

SETTLE_S = 10.0
"""Until everything a fault set in motion has come to rest; a load of torch is the slowest part."""
RSS_GROWTH = 8 << 20


@dataclass(frozen=True)
class Process:
    """What one process holds."""

    descriptors: Counter[str]
    threads: int
    rss: int


@dataclass(frozen=True)
class Snapshot:
    """The whole server at one moment."""

    shm: frozenset[str]
    holders: frozenset[int]
    roles: Counter[str]
    zombies: int
    core: dict[str, Process]
    cgroups: int
    runtime: Counter[str]
    open_requests: float
    used_bytes: float
    instances: Counter[str] = field(default_factory=Counter)


def role_of(command: list[str]) -> str:
    """keeper, run, gateway, worker, or what else it runs."""
    for word in command:
        found = re.fullmatch(r"mmsup\.(?:supervisor\.)?(\w+)(?:\.cli)?", word)
        if found:
            return found[1]
    return " ".join(command[:3])


def kinds(pid: int) -> Counter[str]:
    """Descriptors by kind: `socket`, `pipe`, `memfd:mmsup-arena`, a file's name."""
    found: Counter[str] = Counter()
    folder = f"/proc/{pid}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"{folder}/{fd}")
            found[re.sub(r":?\[.*\]| \(deleted\)|/w\d+\.\d+|\d+", "", target)] += 1
    return found


def examine(process: psutil.Process) -> Process:
    return Process(kinds(process.pid), process.num_threads(), process.memory_info().rss)


def cgroup_folders(server: Server) -> int:
    """Folders of this server's workers, over all hierarchies, found by what its processes are in."""
    found = set()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.Error):
            for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers == "memory" and "mmsup" in path:
                    found.add(Path("/sys/fs/cgroup/memory" + path).parent)
    return sum(1 for top in found for each in top.iterdir() if each.is_dir())


def snapshot(server: Server) -> Snapshot:
    """Everything now."""
    keeper = psutil.Process(server.process.pid)
    family = [keeper, *keeper.children(recursive=True)]
    roles: Counter[str] = Counter()
    core: dict[str, Process] = {}
    zombies = 0
    gateways = 0
    for each in family:
        if each.status() == psutil.STATUS_ZOMBIE:
            zombies += 1
            continue
        role = role_of(each.cmdline())
        roles[role] += 1
        if role != "worker":
            gateways += role == "gateway"
            core[f"gateway{gateways}" if role == "gateway" else role] = examine(each)
    return Snapshot(
        shm=frozenset(os.listdir("/dev/shm")),
        holders=frozenset(memfd_holders()) - {each.pid for each in family},
        roles=roles,
        zombies=zombies,
        core=core,
        cgroups=cgroup_folders(server),
        runtime=Counter(re.sub(r"\d+", "N", each.name) for each in server.runtime_dir.rglob("*")),
        open_requests=server.gauge("mmsup_requests_open"),
        used_bytes=server.gauge("mmsup_arena_used_bytes"),
    )


def memfd_holders() -> set[int]:
    """Pids that hold memory of ours."""
    found = set()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if any("memfd:mmsup" in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")):
                found.add(pid)
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What is not as it was, in words."""
    found = []
    if after.shm - before.shm:
        found.append(f"I1 new in /dev/shm: {after.shm - before.shm}")
    if after.holders - before.holders:
        found.append(f"I1 strangers hold our memory: {after.holders - before.holders}")
    if after.zombies:
        found.append(f"I2 {after.zombies} zombies")
    if after.roles != before.roles:
        found.append(f"I2 processes: {dict(before.roles)} became {dict(after.roles)}")
    for role, was in before.core.items():
        found += process_differences(role, was, after.core.get(role))
    if after.cgroups != before.cgroups:
        found.append(f"I5 {before.cgroups} cgroup folders became {after.cgroups}")
    if after.runtime != before.runtime:
        found.append(f"I6 runtime folder: {before.runtime} became {after.runtime}")
    if after.open_requests or after.used_bytes:
        found.append(f"I7 {after.open_requests} requests open, {after.used_bytes} arena bytes used")
    return found


def process_differences(role: str, was: Process, now: Process | None) -> list[str]:
    if now is None:
        return [f"I2 {role} is gone"]
    found = []
    if now.descriptors != was.descriptors:
        found.append(
            f"I3 {role} descriptors: +{now.descriptors - was.descriptors} -{was.descriptors - now.descriptors}"
        )
    if now.rss > was.rss + RSS_GROWTH:
        found.append(f"I4 {role} grew by {(now.rss - was.rss) >> 10} KiB")
    if now.threads != was.threads:
        found.append(f"I8 {role} had {was.threads} threads and has {now.threads}")
    return found


def assert_clean(before: Snapshot, server: Server, settle_s: float = SETTLE_S) -> None:
    """Wait until all is as before, and fail with the differences if it does not become so."""
    end = time.monotonic() + settle_s
    while True:
        found = differences(before, snapshot(server))
        if not found:
            return
        if time.monotonic() > end:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))
        select_pause()


def assert_gone(server: Server, before: frozenset[str]) -> None:
    """After the end: no process, socket, segment, cgroup or lock of this server."""
    end = time.monotonic() + SETTLE_S
    while True:
        found = [f"holds our memory: pid {pid}" for pid in memfd_holders()]
        found += [f"in /dev/shm: {name}" for name in set(os.listdir("/dev/shm")) - before]
        found += [f"socket {each}" for each in server.runtime_dir.rglob("*") if each.is_socket()]
        found += [f"process {each}" for each in family_of(server)]
        if not found:
            return
        if time.monotonic() > end:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))
        select_pause()


def family_of(server: Server) -> list[str]:
    """Processes whose command line or environment names this server's directories."""
    found = []
    needle = str(server.root).encode()
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and needle in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r:.200}")
    return found
