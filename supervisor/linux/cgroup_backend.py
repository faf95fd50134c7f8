"""The cgroup version of this machine (v2, v1 or none), and the tree of one server's control groups.

One group is described in cgroup.py. Standard library only: the keeper cleans the tree up, the controller creates groups
in it. All groups of a server lie in its folder `mmsup_<hash of the state directory>`. The keeper holds the lock of that
directory, so every group that it finds at its start is left over. A group has the id of one worker process (`w7.3`).

    v2    DELEGATED/mmsup_<hash>/{core, idle, w7.3, …}  DELEGATED: the group that systemd delegated to us. Keeper,
                                                  controller and gateways run in `core`, because a group that enables
                                                  controllers for its children may hold no process itself. Without a
                                                  memory controller groups still serve to kill a worker with its
                                                  descendants, and memory is limited as in `none`
    v1    {memory, freezer, pids, cpu}/mmsup_<hash>/{w7.3, …}          if these hierarchies are writable
    none  no groups; memory is limited by RLIMIT_DATA in the worker and by the controller's memory checks

With a cpu controller that knows `cpu.idle` there is an idle group for what starts (idle_group.py), on v1 beside the
server's folder: `cpu/mmsup_<hash>_idle`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mmsup.ipc.memory.kernel_file import read_kernel_file
from mmsup.supervisor.linux.cgroup import (
    IDLE,
    PROCS,
    Cgroup,
    CgroupUsage,
    kill,
    parse_field,
    read_file,
    remove_all,
    write_file,
)
from mmsup.supervisor.linux.idle_group import IdleGroup

ROOT: Final = Path("/sys/fs/cgroup")
OWN_CGROUP_FILE: Final = Path("/proc/self/cgroup")
CORE: Final = "core"
PIDS_LIMIT: Final = max(1024, 64 * (os.cpu_count() or 1))
"""Tasks of one worker: far above the thread pools of the engines, which grow with the cores, and few enough that a fork
bomb can be killed. Measured with 4096 on 2 cores: 5 s until all were dead; a request of another model took 1.3 s."""
CLEANUP_LIMIT_S: Final = 2.0
"""How long the keeper waits at its start and end for killed processes; those in an unkillable state (D) are left."""
_FALLBACK: Final = "RLIMIT_DATA and memory checks enforce the caps"
_FILE_PAGES: Final = ("inactive_file", "active_file")
"""Fields of memory.stat: page cache, which the kernel drops before it kills for memory."""
_V1_OTHERS: Final = ("freezer", "pids", "cpu")
CORE_WEIGHT: Final = 800
"""cpu.weight of `core` (v2), that of a worker being 100: all models depend on keeper, controller and gateways."""


def top_name(state_dir: str, prefix: str = "mmsup_") -> str:
    return prefix + hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]


class CgroupBackend(Protocol):
    """The same operations for each cgroup version."""

    description: str
    idle: IdleGroup | None
    """The group in which processes start; None where they compete with those who serve from the beginning."""
    has_device_caps: bool
    """Groups limit the memory of devices too: the dmem controller."""

    def create(self, worker: str, cap_bytes: int | None) -> Cgroup:
        """A new group for one worker process; its name may differ from `worker`. OSError if the kernel refuses."""

    def group(self, name: str) -> Cgroup: ...

    def names(self) -> list[str]: ...

    def remove_all(self) -> bool:
        """Kill and remove all groups and the server's folder. False if processes are left in it."""


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What the choice of the version depends on."""

    own_path: str
    """Path of this process in the v2 tree."""
    controllers: tuple[str, ...]
    """Controllers that the server's v2 folder enables for its groups; empty without such a folder."""
    v1_hierarchies: tuple[str, ...]
    """Writable ones."""
    v2_refusal: str
    """Why the keeper could not set up v2."""
    is_core: bool = False
    """This process runs in `core` of the server's v2 folder."""
    own_v1_cpu: str = ""
    """Path of this process in the v1 hierarchy of the cpu controller; empty if there is none."""


@dataclass(frozen=True, slots=True)
class CgroupChoice:
    """`v2`, `v1` or `none`, and why."""

    kind: str
    reason: str


def choose(facts: CgroupFacts) -> CgroupChoice:
    """v2 with memory limits, else v1 with memory limits, else v2 without, else none."""
    if "memory" in facts.controllers:
        return CgroupChoice("v2", f"delegated, {facts.own_path}")
    if "memory" in facts.v1_hierarchies:
        return CgroupChoice("v1", f"own folders in {', '.join(facts.v1_hierarchies)}")
    if facts.is_core:
        return CgroupChoice("v2", f"delegated, {facts.own_path}; no memory controller: {_FALLBACK}")
    return CgroupChoice("none", f"{facts.v2_refusal}; no v1 memory hierarchy is writable: {_FALLBACK}")


def detect(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE, refused: str = "") -> CgroupFacts:
    """`refused`: why the keeper could not set up v2, if it has tried."""
    own = _own_path(own_file)
    folder = root / own.lstrip("/")
    is_core = _is_core(folder, top)
    enabled = read_file(folder.parent / "cgroup.subtree_control") if is_core else ""
    return CgroupFacts(
        own,
        tuple(enabled.split()),
        tuple(name for name in ("memory", *_V1_OTHERS) if _is_v1(root / name)),
        refused or "the v2 group is not delegated",
        is_core,
        _own_path(own_file, "cpu"),
    )


def backend(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE, refused: str = "") -> CgroupBackend:
    """The backend of this machine, for the controller; the keeper has called `set_up` before."""
    facts = detect(top, root, own_file, refused)
    choice = choose(facts)
    idle = _idle_place(choice, facts, top, root)
    if idle is not None and not idle.exists:
        idle = None
    match choice.kind:
        case "v2":
            server = (root / facts.own_path.lstrip("/")).parent
            return _V2Backend(server, choice, idle, facts.controllers)
        case "v1":
            return _V1Backend([root / name / top for name in facts.v1_hierarchies], choice, idle)
        case _:
            return _NoBackend(choice)


def _idle_place(choice: CgroupChoice, facts: CgroupFacts, top: str, root: Path) -> IdleGroup | None:
    """Where the idle group is, or would be; None without a cpu controller."""
    if choice.kind == "v2" and "cpu" in facts.controllers:
        core = root / facts.own_path.lstrip("/")
        return IdleGroup(core.parent / IDLE, core)
    if choice.kind == "v1" and "cpu" in facts.v1_hierarchies and facts.own_v1_cpu:
        home = root / "cpu" / facts.own_v1_cpu.lstrip("/")
        return IdleGroup(root / "cpu" / f"{top}_{IDLE}", home) if os.access(home / PROCS, os.W_OK) else None
    return None


def set_up(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE) -> CgroupBackend:
    """At the keeper's start, with the directories locked: set up v2 if it is delegated, kill left-over groups."""
    refused = _set_up_v2(top, root, own_file)
    facts = detect(top, root, own_file, refused)
    if (idle := _idle_place(choose(facts), facts, top, root)) is not None:
        _retry(idle.kill)  # what a server before has left
        idle.make()
    created = backend(top, root, own_file, refused)
    _retry(lambda: kill_and_remove_all(created))
    return created


def tear_down(groups: CgroupBackend) -> bool:
    """At the keeper's end: remove everything. False if killed processes are still there."""
    return _retry(groups.remove_all)


def _retry(is_done: Callable[[], bool]) -> bool:
    """Call until it returns True, at most for CLEANUP_LIMIT_S. It blocks: for the start and the end of the keeper."""
    deadline = time.monotonic() + CLEANUP_LIMIT_S
    while not is_done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def kill_and_remove_all(backend: CgroupBackend) -> bool:
    """Kill and remove all groups; False if some are not empty yet."""
    groups = [backend.group(name) for name in backend.names()]
    removed = [group.kill() and group.remove() for group in groups]
    return all(removed)


def _unused_name(tops: list[Path], worker: str) -> str:
    """`worker`, or `worker~2` and so on if an old group of that name cannot be removed."""
    name, number = worker, 1
    while not remove_all([top / name for top in tops]):
        number += 1
        name = f"{worker}~{number}"
    return name


@contextlib.contextmanager
def _all_or_none(folders: list[Path]) -> Iterator[list[Path]]:
    """Create folders, and remove them again if the block fails."""
    try:
        for folder in folders:
            folder.mkdir()
        yield folders
    except OSError:
        with contextlib.suppress(OSError):
            remove_all(folders)
        raise


def _group_names(top: Path) -> list[str]:
    try:
        return sorted(each.name for each in top.iterdir() if each.is_dir() and each.name not in (CORE, IDLE))
    except FileNotFoundError:
        return []


def _own_path(own_file: Path, controller: str = "") -> str:
    """The path of this process in the v2 tree, or in the v1 hierarchy of a controller."""
    lines = [line.split(":", 2) for line in read_file(own_file).splitlines()]
    return next((path for _, controllers, path in lines if controller in controllers.split(",")), "")


def _is_core(folder: Path, top: str) -> bool:
    return folder.name == CORE and folder.parent.name == top


def _is_v1(folder: Path) -> bool:
    return not (folder / "cgroup.controllers").exists() and (folder / PROCS).exists() and os.access(folder, os.W_OK)


def _describe(idle: IdleGroup | None) -> str:
    return "starts yield" if idle is not None else "starts compete, without a group with cpu.idle"


def _remove_idle(idle: IdleGroup | None) -> bool:
    return idle is None or (idle.kill() and idle.remove())


class _V1Backend:
    def __init__(self, tops: list[Path], choice: CgroupChoice, idle: IdleGroup | None) -> None:
        self._tops = tops
        self.idle = idle
        self.has_device_caps = False
        self.description = f"cgroup v1: {choice.reason}; {_describe(idle)}"

    def create(self, worker: str, cap_bytes: int | None) -> Cgroup:
        name = _unused_name(self._tops, worker)
        for top in self._tops:
            top.mkdir(exist_ok=True)
        with _all_or_none([top / name for top in self._tops]) as folders:
            if cap_bytes is not None:
                (folders[0] / "memory.limit_in_bytes").write_text(str(cap_bytes))
                write_file(folders[0] / "memory.memsw.limit_in_bytes", str(cap_bytes))  # absent without swap accounting
            for folder in folders[1:]:
                write_file(folder / "pids.max", str(PIDS_LIMIT))
        return self.group(name)

    def group(self, name: str) -> Cgroup:
        return Cgroup([top / name for top in self._tops], "memory.limit_in_bytes", _read_v1, "memory.usage_in_bytes")

    def names(self) -> list[str]:
        return sorted({name for top in self._tops for name in _group_names(top)})

    def remove_all(self) -> bool:
        is_idle_gone = _remove_idle(self.idle)  # first: members of other groups may be in it
        return kill_and_remove_all(self) and is_idle_gone and remove_all(self._tops)


def _read_v1(memory: Path) -> CgroupUsage:
    stat = read_file(memory / "memory.stat")
    return CgroupUsage(
        int(read_kernel_file(f"{memory}/memory.usage_in_bytes")),
        sum(parse_field(stat, f"total_{name}") for name in _FILE_PAGES),
        int(read_kernel_file(f"{memory}/memory.max_usage_in_bytes")),
        parse_field(read_kernel_file(f"{memory}/memory.oom_control"), "oom_kill"),
    )


class _V2Backend:
    def __init__(self, top: Path, choice: CgroupChoice, idle: IdleGroup | None, controllers: tuple[str, ...]) -> None:
        self._top = top
        self.idle = idle
        self.description = f"cgroup v2: {choice.reason}; {_describe(idle)}"
        self._caps = "memory" in controllers
        self.has_device_caps = "dmem" in controllers

    def create(self, worker: str, cap_bytes: int | None) -> Cgroup:
        name = _unused_name([self._top], worker)
        with _all_or_none([self._top / name]) as (folder,):
            if self._caps and cap_bytes is not None:
                (folder / "memory.max").write_text(str(cap_bytes))
                write_file(folder / "memory.swap.max", "0")
            write_file(folder / "memory.oom.group", "1")
            write_file(folder / "pids.max", str(PIDS_LIMIT))
        return self.group(name)

    def group(self, name: str) -> Cgroup:
        return Cgroup([self._top / name], "memory.max", _read_v2, "memory.current")

    def names(self) -> list[str]:
        return _group_names(self._top)

    def remove_all(self) -> bool:
        is_idle_gone = _remove_idle(self.idle)
        if not (kill_and_remove_all(self) and is_idle_gone):
            return False
        delegated = self._top.parent
        # Controllers are disabled from the bottom up; otherwise the kernel does not let this process back in.
        for folder in (self._top, delegated):
            for controller in read_file(folder / "cgroup.subtree_control").split():
                write_file(folder / "cgroup.subtree_control", f"-{controller}")
        return write_file(delegated / PROCS, "0") and remove_all([self._top / CORE, self._top])


def _read_v2(folder: Path) -> CgroupUsage:
    usage, stat = int(read_kernel_file(f"{folder}/memory.current")), read_file(folder / "memory.stat")
    return CgroupUsage(
        usage,
        sum(parse_field(stat, name) for name in _FILE_PAGES),
        int(read_file(folder / "memory.peak") or usage),  # since Linux 5.19
        parse_field(read_kernel_file(f"{folder}/memory.events"), "oom_kill"),
    )


def _set_up_v2(top: str, root: Path, own_file: Path) -> str:
    """Move the keeper into `core` of the server's v2 server, and enable controllers above it; why not, if it fails."""
    own = _own_path(own_file)
    delegated = root / own.lstrip("/")
    if _is_core(delegated, top):
        return ""
    offered = read_file(delegated / "cgroup.controllers").split()
    # Without a memory controller a v2 group could still kill a worker as a whole; a memory limit in v1 is preferred.
    exists = own and (delegated / "cgroup.controllers").exists()
    if not exists or ("memory" not in offered and _is_v1(root / "memory")):
        return "the v2 group has no memory controller"
    if not os.access(delegated, os.W_OK) or not os.access(delegated / PROCS, os.W_OK):
        return f"the v2 group {own} is not delegated to us"
    server = delegated / top
    try:
        for folder in (server, server / CORE):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        return f"the v2 group {own} cannot have sub-groups: {error.strerror}"
    kill([server / CORE])  # left over: this process is not in it yet
    if (
        write_file(server / CORE / PROCS, "0")
        and _enable_controllers(delegated, offered)
        and _enable_controllers(server, offered)
    ):
        write_file(server / CORE / "cpu.weight", str(CORE_WEIGHT))
        return ""
    write_file(delegated / PROCS, "0")
    remove_all([server / CORE, server])
    return f"the v2 group {own} holds processes that are not ours"


def _enable_controllers(folder: Path, offered: list[str]) -> bool:
    for controller in ("+dmem", "+cpu", "+pids"):
        write_file(folder / "cgroup.subtree_control", controller)
    return "memory" not in offered or write_file(folder / "cgroup.subtree_control", "+memory")


class _NoBackend:
    def __init__(self, choice: CgroupChoice) -> None:
        self.idle: IdleGroup | None = None
        self.has_device_caps = False
        self.description = f"no cgroup: {choice.reason}; {_describe(None)}"

    def create(self, worker: str, cap_bytes: int | None) -> Cgroup:  # noqa: ARG002 - the interface
        return Cgroup(())

    def group(self, name: str) -> Cgroup:  # noqa: ARG002 - the interface
        return Cgroup(())

    def names(self) -> list[str]:
        return []

    def remove_all(self) -> bool:
        return True
