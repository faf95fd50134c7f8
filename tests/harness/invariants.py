"""The invariants I1 to I8 of the fault table: what must be as before when a fault is over.

`before` is taken after warm-up. A process that the fault replaced is compared by kinds of descriptor, not by pid.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from harness.server import Server, eventually, pause

SETTLE_S = 10.0
"""Limit for the server to settle after a fault; a load of torch is the slowest part."""
RSS_GROWTH = 8 << 20
OF_ZYGOTE = {
    "keeper": Counter({"anon_inode": 1, "socket": 2, "pipe": 2, "/memfd:mmsup-page": 1}),
    "controller": Counter({"anon_inode": 1, "socket": 1, "pipe": 2, "/memfd:mmsup-page": 2}),
}
"""Descriptors that these hold for each zygote. One comes with the second worker that wants it, and stays a while."""


@dataclass(frozen=True)
class ProcessState:
    """Descriptors, threads and memory of one process."""

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
    core: dict[str, ProcessState]
    cgroups: int
    runtime: Counter[str]
    open_requests: float
    used_bytes: float
    instances: Counter[str] = field(default_factory=Counter)


def role_of(command: list[str]) -> str:
    """keeper, controller, gateway, worker, zygote, or the first words of another command."""
    for word in command:
        found = re.fullmatch(r"mmsup\.(?:supervisor\.|worker\.)?(\w+)(?:\.cli)?", word)
        if found:
            return found[1]
    return " ".join(command[:3])


def descriptor_kinds(pid: int) -> Counter[str]:
    """Descriptors by kind: `socket`, `pipe`, `memfd:mmsup-arena`, a file's name."""
    found: Counter[str] = Counter()
    folder = f"/proc/{pid}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"{folder}/{fd}")
            if "/state/logs/" in target:
                continue  # open while a worker that has printed lives
            found[re.sub(r":?\[.*\]| \(deleted\)|/w\d+\.\d+|\d+", "", target)] += 1
    return found


def process_state(process: psutil.Process) -> ProcessState:
    return ProcessState(descriptor_kinds(process.pid), process.num_threads(), process.memory_info().rss)


def cgroup_tops(server: Server) -> set[Path]:
    """The control groups of this server in the v1 memory hierarchy, found from /proc/PID/cgroup."""
    found = set()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, psutil.Error):
            for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
                _, controllers, path = line.split(":", 2)
                if controllers == "memory" and "mmsup" in path:
                    found.add(Path("/sys/fs/cgroup/memory" + path).parent)
    return found


def cgroup_folders(server: Server) -> int:
    """The number of worker control groups."""
    return sum(
        1 for top in cgroup_tops(server) for each in top.iterdir() if each.is_dir() and not each.name.startswith("z")
    )


def snapshot(server: Server) -> Snapshot:
    """A snapshot, taken again if a process ends meanwhile."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            return _snapshot_once(server)


def settled(server: Server) -> Snapshot:
    """A snapshot for comparison, once two in a row are equal, and no child is forked that does not run its program yet,
    a zygote for instance."""
    eventually(lambda: len(set(server.status()["spare_gateways"].values())) == 1, "the spare gateway is there")
    seen = snapshot(server)
    end = time.monotonic() + SETTLE_S
    while differences(seen, again := snapshot(server)) or again.roles["keeper"] > 1:
        assert time.monotonic() < end, f"the server does not come to rest: {differences(seen, again)}"
        seen = again
    return seen


def _snapshot_once(server: Server) -> Snapshot:
    keeper = psutil.Process(server.process.pid)
    processes = sorted([keeper, *keeper.children(recursive=True)], key=psutil.Process.create_time)
    roles: Counter[str] = Counter()
    core: dict[str, ProcessState] = {}
    zombies = 0
    gateways = 0
    zygotes = 0
    for each in processes:
        if each.status() == psutil.STATUS_ZOMBIE:
            zombies += 1
            continue
        role = role_of(each.cmdline())
        if role == "zygote":
            zygotes += 1
            continue
        roles[role] += 1
        if role != "worker":
            gateways += role == "gateway"
            core[f"gateway{gateways}" if role == "gateway" else role] = process_state(each)
    for role, held in OF_ZYGOTE.items():
        for name, count in held.items() if role in core else ():
            core[role].descriptors[name] -= zygotes * count
    return Snapshot(
        shm=names_in_shm(),
        holders=outside_holders(memory_of(each.pid for each in processes), [each.pid for each in processes]),
        roles=roles,
        zombies=zombies,
        core=core,
        cgroups=cgroup_folders(server),
        runtime=Counter(re.sub(r"\d+", "N", each.name) for each in server.runtime_dir.rglob("*")),
        open_requests=server.gauge("mmsup_requests_open"),
        used_bytes=server.gauge("mmsup_arena_used_bytes"),
    )


def names_in_shm() -> frozenset[str]:
    """Files in /dev/shm, without semaphores of multiprocessing, which only tests use (tests/test_architecture.py
    forbids it elsewhere), and those of the benchmarks' peers and of clients under test, which have prefixes."""
    others = ("sem.mp-", "mmsup_bench_", "mmsup_client_")
    return frozenset(name for name in os.listdir("/dev/shm") if not name.startswith(others))


def memory_of(pids: Iterable[int]) -> frozenset[int]:
    """Inodes of the mmsup memfds that these processes have open."""
    found = set()
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        with contextlib.suppress(OSError):
            for fd in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    if "memfd:mmsup" in os.readlink(f"{folder}/{fd}"):
                        found.add(os.stat(f"{folder}/{fd}").st_ino)
    return frozenset(found)


def outside_holders(memory: frozenset[int], family: Iterable[int]) -> frozenset[int]:
    """Processes outside the family that hold any of this memory."""
    others = set(psutil.pids()) - set(family)
    return frozenset(pid for pid in others if memory_of([pid]) & memory)


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """The differences, as text."""
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


def process_differences(role: str, was: ProcessState, now: ProcessState | None) -> list[str]:
    if now is None:
        return [f"I2 {role} is gone"]
    found = []
    more, fewer = now.descriptors - was.descriptors, was.descriptors - now.descriptors
    del fewer["socket"]  # a client of the time before may have been about to hang up
    del fewer["/memfd:mmsup-arena"]  # memory that nobody has used for a minute is given back
    if more or fewer:
        found.append(f"I3 {role} descriptors: +{more} -{fewer}")
    if now.rss > was.rss + RSS_GROWTH:
        found.append(f"I4 {role} grew by {(now.rss - was.rss) >> 10} KiB")
    if now.threads != was.threads:
        found.append(f"I8 {role} had {was.threads} threads and has {now.threads}")
    return found


def assert_clean(before: Snapshot, server: Server, settle_s: float = SETTLE_S) -> None:
    """Wait until everything is as before; AssertionError with the differences if that takes too long."""
    began = time.monotonic()
    while True:
        found = differences(before, snapshot(server))
        if not found:
            return
        if time.monotonic() > began + settle_s:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))
        pause(began)


@dataclass(frozen=True)
class ServerProcesses:
    """Processes, memory and control groups of a server, for `assert_gone` after its end."""

    processes: list[psutil.Process]
    memory: frozenset[int]
    shm: frozenset[str]
    cgroups: frozenset[Path]


def server_processes(server: Server) -> ServerProcesses:
    """What must be gone after the server has ended."""
    keeper = psutil.Process(server.process.pid)
    processes = [keeper, *keeper.children(recursive=True)]
    memory = memory_of(each.pid for each in processes)
    return ServerProcesses(processes, memory, names_in_shm(), frozenset(cgroup_tops(server)))


def assert_gone(server: Server, was: ServerProcesses) -> None:
    """Wait until no process, socket, segment or control group of the server is left."""
    began = time.monotonic()
    while True:
        found = [f"process {each.pid}" for each in was.processes if each.is_running()]
        found += [f"pid {pid} holds its memory" for pid in outside_holders(was.memory, [])]
        found += [f"in /dev/shm: {name}" for name in names_in_shm() - was.shm]
        found += [f"cgroup {each}" for each in was.cgroups if each.exists()]
        found += [f"socket {each}" for each in server.runtime_dir.rglob("*") if each.is_socket()]
        if not found:
            return
        if time.monotonic() > began + SETTLE_S:
            raise AssertionError("left behind:\n  " + "\n  ".join(found))
        pause(began)
