"""Control groups by kind: which one this machine offers, and how the groups of one server are made and swept there.

Does not cover: one group, its counters and its end (group.py); who joins it (the brain says so in Spawn, the child
writes itself in: spawn.py); what a kill for memory means (cause.py). Standard library only: the keeper sweeps by it,
the brain makes groups by it.

All groups of one server lie in its own folder `mmsup_<hash of the state directory>`, whose lock the keeper holds, so
whatever it finds there at its start is a leftover. A group belongs to one life (`w7.3`) and no other joins it.

    v2    GIVEN/mmsup_<hash>/{core, w7.3, …}      GIVEN: what systemd delegated. Keeper, brain and gateways live in
                                                  `core`, for a group that hands controllers on may hold no process.
                                                  Without a memory controller there, groups end a life as a whole,
                                                  and as in `none` the cap is kept otherwise
    v1    {memory, freezer, pids, cpu}/mmsup_<hash>/{w7.3, …}          where these hierarchies can be written
    none  nothing; RLIMIT_DATA in the worker and watching from outside take the cap's place
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

from mmsup.supervisor.linux.cgroup import (
    PROCS,
    Cgroup,
    CgroupUsage,
    kill,
    parse_field,
    read_file,
    remove_all,
    write_file,
)

ROOT: Final = Path("/sys/fs/cgroup")
OWN_CGROUP_FILE: Final = Path("/proc/self/cgroup")
CORE: Final = "core"
PIDS_LIMIT: Final = max(1024, 64 * (os.cpu_count() or 1))
"""Tasks of one worker: far above any engine's thread pools, which grow with the cores, and few enough that a bomb of
them can be ended. Measured with 4096 on 2 cores: 5 s until all were dead, and a neighbour's call of 1.3 s meanwhile."""
CLEANUP_LIMIT_S: Final = 2.0
"""How long the keeper's start and end wait for leftovers to die; one in an unkillable state is left to lie."""
_FALLBACK: Final = "RLIMIT_DATA and watching keep the caps"
_V1_OTHERS: Final = ("freezer", "pids", "cpu")
CORE_WEIGHT: Final = 800
"""cpu.weight of `core` (v2); a worker's is 100. Keeper, brain and gateways answer for all of them."""


def top_name(state_dir: str, prefix: str = "mmsup_") -> str:
    """The folder of the server that holds this state directory."""
    return prefix + hashlib.sha256(os.path.realpath(state_dir).encode()).hexdigest()[:12]


class CgroupBackend(Protocol):
    """What the brain and the keeper do with control groups, whichever kind the machine has."""

    def create(self, life: str, cap_bytes: int | None) -> Cgroup:
        """A fresh group for one life; keep its `name` with the child. OSError if the kernel refuses."""
        ...

    def group(self, life: str) -> Cgroup:
        """The group that an earlier brain made, by its name."""
        ...

    def names(self) -> list[str]:
        """The names of all groups there are."""
        ...

    def remove_all(self) -> bool:
        """Give back the server's own folder (see `leave`). False if something still lives in it."""
        ...

    def describe(self) -> str:
        """For people: which kind, and why."""
        ...


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """What decides the choice."""

    own_path: str
    """Our path in the v2 tree."""
    controllers: tuple[str, ...]
    """Controllers that the server's own v2 folder gives to its groups; empty where there is none."""
    v1_hierarchies: tuple[str, ...]
    """v1 hierarchies in which we can make folders."""
    v2_refusal: str
    """Why the keeper could not set up v2."""
    is_core: bool = False
    """We are in the core of the server's own v2 folder."""


@dataclass(frozen=True, slots=True)
class CgroupChoice:
    """`v2`, `v1` or `none`, and why."""

    kind: str
    reason: str


def choose(facts: CgroupFacts) -> CgroupChoice:
    """The one place that decides how caps are kept."""
    if "memory" in facts.controllers:
        return CgroupChoice("v2", f"delegated, {facts.own_path}")
    if "memory" in facts.v1_hierarchies:
        return CgroupChoice("v1", f"own folders in {', '.join(facts.v1_hierarchies)}")
    if facts.is_core:
        return CgroupChoice("v2", f"delegated, {facts.own_path}; no memory controller: {_FALLBACK}")
    return CgroupChoice("none", f"{facts.v2_refusal}; no v1 memory hierarchy can be written: {_FALLBACK}")


def detect(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE, refused: str = "") -> CgroupFacts:
    """The facts as they are now. `refused` is what `enter` said, where it was called."""
    own = _own_path(own_file)
    home = root / own.lstrip("/")
    is_core = _is_core(home, top)
    enabled = read_file(home.parent / "cgroup.subtree_control") if is_core else ""
    return CgroupFacts(
        own,
        tuple(enabled.split()),
        tuple(name for name in ("memory", *_V1_OTHERS) if _is_v1(root / name)),
        refused or "the v2 group is not delegated",
        is_core,
    )


def backend(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE, refused: str = "") -> CgroupBackend:
    """The backend of this machine, for the brain; the keeper has called `settle` before."""
    facts = detect(top, root, own_file, refused)
    choice = choose(facts)
    match choice.kind:
        case "v2":
            return _V2Backend((root / facts.own_path.lstrip("/")).parent, choice, caps="memory" in facts.controllers)
        case "v1":
            return _V1Backend([root / name / top for name in facts.v1_hierarchies], choice)
        case _:
            return _NoBackend(choice)


def set_up(top: str, root: Path = ROOT, own_file: Path = OWN_CGROUP_FILE) -> CgroupBackend:
    """For the keeper at its start, with the lock held: set up v2 if it is delegated, end a former life's leftovers."""
    made = backend(top, root, own_file, _set_up_v2(top, root, own_file))
    _retry(lambda: kill_and_remove_all(made))
    return made


def tear_down(made: CgroupBackend) -> bool:
    """For the keeper at its end: remove all that the server made. False if something would not die."""
    return _retry(made.remove_all)


def _retry(is_done: Callable[[], bool]) -> bool:
    """Again and again, for SETTLE_S; only where nothing is served."""
    deadline = time.monotonic() + CLEANUP_LIMIT_S
    while not is_done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def kill_and_remove_all(made: CgroupBackend) -> bool:
    """Kill and remove all groups of the server; False if some are still dying."""
    groups = [made.group(life) for life in made.names()]
    gone = [group.kill() and group.remove() for group in groups]
    return all(gone)


def _unused_name(tops: list[Path], life: str) -> str:
    """The life's own name, or one beside it if a former life's group of that name will not die."""
    name, number = life, 1
    while not remove_all([top / name for top in tops]):
        number += 1
        name = f"{life}~{number}"
    return name


@contextlib.contextmanager
def _all_or_none(folders: list[Path]) -> Iterator[list[Path]]:
    """New folders; if anything of the block fails there are none."""
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
        return sorted(each.name for each in top.iterdir() if each.is_dir() and each.name != CORE)
    except FileNotFoundError:
        return []


def _own_path(own_file: Path) -> str:
    for line in read_file(own_file).splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def _is_core(folder: Path, top: str) -> bool:
    return folder.name == CORE and folder.parent.name == top


def _is_v1(folder: Path) -> bool:
    return not (folder / "cgroup.controllers").exists() and (folder / PROCS).exists() and os.access(folder, os.W_OK)


class _V1Backend:
    def __init__(self, tops: list[Path], choice: CgroupChoice) -> None:
        self._tops = tops
        self._choice = choice

    def create(self, life: str, cap_bytes: int | None) -> Cgroup:
        life = _unused_name(self._tops, life)
        for top in self._tops:
            top.mkdir(exist_ok=True)
        with _all_or_none([top / life for top in self._tops]) as folders:
            if cap_bytes is not None:
                (folders[0] / "memory.limit_in_bytes").write_text(str(cap_bytes))
                write_file(folders[0] / "memory.memsw.limit_in_bytes", str(cap_bytes))  # the kernel may count no swap
            for folder in folders[1:]:
                write_file(folder / "pids.max", str(PIDS_LIMIT))
        return self.group(life)

    def group(self, life: str) -> Cgroup:
        return Cgroup([top / life for top in self._tops], "memory.limit_in_bytes", _read_v1, "memory.usage_in_bytes")

    def names(self) -> list[str]:
        return sorted({life for top in self._tops for life in _group_names(top)})

    def remove_all(self) -> bool:
        return kill_and_remove_all(self) and remove_all(self._tops)

    def describe(self) -> str:
        return f"cgroup v1: {self._choice.reason}"


def _read_v1(memory: Path) -> CgroupUsage:
    return CgroupUsage(
        int((memory / "memory.usage_in_bytes").read_text()),
        parse_field(read_file(memory / "memory.stat"), "total_inactive_file"),
        int((memory / "memory.max_usage_in_bytes").read_text()),
        parse_field((memory / "memory.oom_control").read_text(), "oom_kill"),
    )


class _V2Backend:
    def __init__(self, top: Path, choice: CgroupChoice, *, caps: bool) -> None:
        self._top = top
        self._choice = choice
        self._caps = caps

    def create(self, life: str, cap_bytes: int | None) -> Cgroup:
        life = _unused_name([self._top], life)
        with _all_or_none([self._top / life]) as (folder,):
            if self._caps and cap_bytes is not None:
                (folder / "memory.max").write_text(str(cap_bytes))
                write_file(folder / "memory.swap.max", "0")
            write_file(folder / "memory.oom.group", "1")
            write_file(folder / "pids.max", str(PIDS_LIMIT))
        return self.group(life)

    def group(self, life: str) -> Cgroup:
        return Cgroup([self._top / life], "memory.max", _read_v2, "memory.current")

    def names(self) -> list[str]:
        return _group_names(self._top)

    def remove_all(self) -> bool:
        if not kill_and_remove_all(self):
            return False
        given = self._top.parent
        # Controllers off from below, else the kernel refuses to take us back in.
        for folder in (self._top, given):
            for controller in read_file(folder / "cgroup.subtree_control").split():
                write_file(folder / "cgroup.subtree_control", f"-{controller}")
        return write_file(given / PROCS, "0") and remove_all([self._top / CORE, self._top])

    def describe(self) -> str:
        return f"cgroup v2: {self._choice.reason}"


def _read_v2(folder: Path) -> CgroupUsage:
    usage = int((folder / "memory.current").read_text())
    return CgroupUsage(
        usage,
        parse_field(read_file(folder / "memory.stat"), "inactive_file"),
        int(read_file(folder / "memory.peak") or usage),  # since Linux 5.19
        parse_field((folder / "memory.events").read_text(), "oom_kill"),
    )


def _set_up_v2(top: str, root: Path, own_file: Path) -> str:
    """Move the keeper into `core` of its own v2 folder, controllers on above it. Why not, if it cannot be."""
    own = _own_path(own_file)
    given = root / own.lstrip("/")
    if _is_core(given, top):
        return ""
    offered = read_file(given / "cgroup.controllers").split()
    # Without the controller a v2 group is still good for ending a life as a whole, but a cap in v1 is worth more.
    if not own or not (given / "cgroup.controllers").exists() or ("memory" not in offered and _is_v1(root / "memory")):
        return "the v2 group has no memory controller"
    if not os.access(given, os.W_OK) or not os.access(given / PROCS, os.W_OK):
        return f"the v2 group {own} is not delegated to us"
    home = given / top
    try:
        for folder in (home, home / CORE):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        return f"the v2 group {own} takes no groups: {error.strerror}"
    kill([home / CORE])  # of a former life: we are not in it yet
    if (
        write_file(home / CORE / PROCS, "0")
        and _enable_controllers(given, offered)
        and _enable_controllers(home, offered)
    ):
        write_file(home / CORE / "cpu.weight", str(CORE_WEIGHT))
        return ""
    write_file(given / PROCS, "0")
    remove_all([home / CORE, home])
    return f"the v2 group {own} holds processes that are not ours"


def _enable_controllers(folder: Path, offered: list[str]) -> bool:
    for wish in ("+cpu", "+pids"):
        write_file(folder / "cgroup.subtree_control", wish)
    return "memory" not in offered or write_file(folder / "cgroup.subtree_control", "+memory")


class _NoBackend:
    def __init__(self, choice: CgroupChoice) -> None:
        self._choice = choice

    def create(self, life: str, cap_bytes: int | None) -> Cgroup:  # noqa: ARG002 - nothing to make, nothing to cap
        return Cgroup(())

    def group(self, life: str) -> Cgroup:  # noqa: ARG002 - all alike
        return Cgroup(())

    def names(self) -> list[str]:
        return []

    def remove_all(self) -> bool:
        return True

    def describe(self) -> str:
        return f"no cgroup: {self._choice.reason}"
