"""On files as kernels write them: v2 in a pod and on a host, v1, both, none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from mmsup.ipc.memory.available_memory import available_bytes, total_bytes

MIB = 1 << 20
MEMINFO = "MemTotal:       65843236 kB\nMemFree:         1000000 kB\nMemAvailable:   33554432 kB\n"
MACHINE_BYTES = 32 << 30


def v2(limit: str, current: int, inactive_file: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{current}\n",
        "memory.stat": f"anon {current}\nfile {inactive_file}\ninactive_anon 0\ninactive_file {inactive_file}\n",
    }


def v1(limit: int, usage: int, inactive_file: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{usage}\n",
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {inactive_file}\n",
    }


def available(folder: Path, own: str, groups: Mapping[str, Mapping[str, str]]) -> int:
    """With these control groups, by their path below the mount point."""
    (folder / "meminfo").write_text(MEMINFO)
    (folder / "own").write_text(own)
    for path, files in groups.items():
        (folder / "fs" / path).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / "fs" / path / name).write_text(text)
    return available_bytes(folder / "meminfo", folder / "own", folder / "fs")


def test_in_a_pod_the_limit_of_the_pod_counts_and_not_the_machines_memory(tmp_path: Path) -> None:
    # A pod with a cgroup namespace of its own: its group is the root of what is mounted.
    assert available(tmp_path, "0::/\n", {"": v2(str(512 * MIB), 500 * MIB, 100 * MIB)}) == 112 * MIB


def test_what_a_pod_can_ever_hold_is_its_limit_or_the_machine(tmp_path: Path) -> None:
    available(tmp_path, "0::/a\n", {"a": v2(str(512 * MIB), MIB)})
    assert total_bytes(tmp_path / "meminfo", tmp_path / "own", tmp_path / "fs") == 512 * MIB
    assert total_bytes(tmp_path / "meminfo", tmp_path / "nothing", tmp_path / "fs") == 65843236 * 1024


def test_the_tightest_of_all_groups_above_counts(tmp_path: Path) -> None:
    pod = "kubepods.slice/kubepods-burstable.slice/pod1"
    groups = {
        "kubepods.slice": v2(str(8 << 30), 7 << 30),
        pod: v2(str(600 * MIB), 400 * MIB),
        f"{pod}/container": v2("max", 300 * MIB),
        f"{pod}/container/mmsup_a1/core": v2("max", 100 * MIB),
    }
    assert available(tmp_path, f"0::/{pod}/container/mmsup_a1/core\n", groups) == 200 * MIB


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert available(tmp_path, "0::/a\n", {"a": v2(str(MIB), 2 * MIB)}) == 0


@pytest.mark.parametrize("own", ["0::/system.slice/mmsup.service\n", "0::/\n", ""])
def test_without_a_limit_the_machines_memory_counts(tmp_path: Path, own: str) -> None:
    assert available(tmp_path, own, {"system.slice/mmsup.service": v2("max", MIB)}) == MACHINE_BYTES


def test_cgroup_v1_has_its_own_names(tmp_path: Path) -> None:
    own = "12:cpu,cpuacct:/other\n5:memory:/docker/0a\n0::/init.scope\n"
    groups = {"memory": v1(1 << 63, MIB), "memory/docker/0a": v1(256 * MIB, 250 * MIB, 4 * MIB)}
    assert available(tmp_path, own, groups) == 10 * MIB


def test_a_container_that_sees_its_group_under_another_path_finds_the_limit_at_the_mount_point(tmp_path: Path) -> None:
    assert available(tmp_path, "5:memory:/docker/0a\n", {"memory": v1(256 * MIB, 56 * MIB)}) == 200 * MIB
