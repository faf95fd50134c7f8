"""What every keeper of memory caps does alike: cgroup v1 for real, v2 on recorded files, and none.

What whole servers do with them is in tests/faults/test_breaches.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend, backend, set_up, tear_down

MIB = 1 << 20
TOP = f"mmsup_test_all_{os.getpid()}"
HAS_V1 = os.access(cgroup_backend.ROOT / "memory" / "memory.limit_in_bytes", os.W_OK)


@dataclass
class Keeper:
    """One kind of backend, and whether its groups hold memory."""

    backend: CgroupBackend
    kind: str
    holds: bool


def recorded_v2(home: Path) -> CgroupBackend:
    """A delegated v2 tree of plain files, with the server's folder set up in it."""
    folder = home / "cgroup" / "mmsup.service" / TOP / "core"
    folder.mkdir(parents=True)
    for each in (folder, folder.parent, folder.parent.parent):
        for name, text in {"controllers": "cpu memory pids", "procs": "", "subtree_control": "memory pids"}.items():
            (each / f"cgroup.{name}").write_text(f"{text}\n")
    (home / "own").write_text(f"0::/mmsup.service/{TOP}/core\n")
    return backend(TOP, home / "cgroup", home / "own")


@pytest.fixture(
    params=[
        pytest.param(
            "v1",
            marks=[pytest.mark.cgroup1, pytest.mark.skipif(not HAS_V1, reason="no writable cgroup v1 memory here")],
        ),
        "v2",
        "none",
    ]
)
def keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keeper]:
    kind = request.param
    if kind == "v1":
        made = set_up(TOP)
        yield Keeper(made, "cgroup v1", holds=True)
        assert tear_down(made)
    elif kind == "v2":
        yield Keeper(recorded_v2(tmp_path), "cgroup v2", holds=True)
    else:
        yield Keeper(set_up(TOP, tmp_path, tmp_path / "own"), "no cgroup", holds=False)


def test_a_group_says_whether_it_holds_the_cap(keeper: Keeper) -> None:
    assert keeper.backend.description.startswith(keeper.kind)
    group = keeper.backend.create("w1.1", 64 * MIB)
    assert group.cap_bytes == (64 * MIB if keeper.holds else None)  # None: RLIMIT_DATA and the memory watch hold it
    assert (group.folder is not None) == bool(group.procs_files) == bool(group.name) == keeper.holds
    assert keeper.backend.group(group.name).cap_bytes == group.cap_bytes
    assert keeper.backend.create("w2.1", None).cap_bytes is None


def test_a_group_without_processes_is_killed_and_removed_at_once(keeper: Keeper) -> None:
    group = keeper.backend.create("w1.1", 64 * MIB)
    assert keeper.backend.names() == ([group.name] if keeper.holds else [])
    assert group.pids() == set()
    assert group.kill()
    for folder in group.folders:
        for file in folder.glob("*") if keeper.kind == "cgroup v2" else ():
            file.unlink()  # recorded files keep a folder, those of the kernel do not
    assert group.remove()
    assert keeper.backend.names() == []
    assert (group.read(), group.usage_bytes(), group.cap_bytes) == (None, None, None)
    assert group.remove(), "again"
