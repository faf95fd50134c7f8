"""What is left behind: found in snapshots, and in the processes of this machine."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter

import pytest

from mmsup.supervisor.chaos.observe.leak_check import (
    ARENA_LINK,
    ProcessResources,
    Snapshot,
    differences,
    leak_counts,
    process_role,
    process_tree,
    survivors,
    take_snapshot,
)

GATEWAY = ProcessResources(Counter({"socket": 4, ARENA_LINK: 6}), 2, 50 << 20)
CLEAN = Snapshot(Counter({"keeper": 1, "gateway": 1, "worker": 2}), 0, {"gateway 1": GATEWAY}, 2, 0)


def gateway(**fields: object) -> dict[str, ProcessResources]:
    return {"gateway 1": dataclasses.replace(GATEWAY, **fields)}  # type: ignore[arg-type] # any field


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"shm_names": frozenset({"mmsup-x"})}, "I1 new in /dev/shm: mmsup-x"),
        ({"outside_holders": 1}, "I1 1 strangers hold shared memory"),
        ({"zombies": 2}, "I2 2 children were not reaped"),
        ({"processes": Counter({"keeper": 1, "gateway": 2, "worker": 2})}, "became 2 gateway, 1 keeper, 2 worker"),
        ({"server_processes": {}}, "I2 gateway 1 is gone"),
        (
            {"server_processes": gateway(descriptors=Counter({"socket": 5}))},
            "I3 gateway 1 has more descriptors: 1 socket",
        ),
        (
            {"server_processes": gateway(descriptors=Counter({ARENA_LINK: 17}))},
            "I3 17 extents of shared memory are open for 2 workers",
        ),
        ({"server_processes": gateway(memory_bytes=90 << 20)}, "I4 gateway 1 grew by 40 MiB"),
        ({"cgroups": 3}, "I5 2 control groups became 3"),
        ({"runtime_files": Counter({"wN.sock": 1})}, "I6 runtime folder: nothing became 1 wN.sock"),
        ({"open_requests": 1.0}, "I7 1 requests open, 0 bytes of slots in use"),
        ({"used_bytes": 64.0}, "I7 0 requests open, 64 bytes of slots in use"),
        ({"server_processes": gateway(threads=3)}, "I8 gateway 1 had 2 threads and has 3"),
    ],
)
def test_each_thing_that_is_left_is_said(fields: dict[str, object], text: str) -> None:
    (found,) = differences(CLEAN, dataclasses.replace(CLEAN, **fields))  # type: ignore[arg-type] # any field
    assert text in found


def test_nothing_left_is_nothing_said_and_less_than_before_is_nothing_left() -> None:
    assert differences(CLEAN, CLEAN) == []
    less = gateway(descriptors=Counter({"socket": 1}), threads=1, memory_bytes=1)
    assert differences(CLEAN, dataclasses.replace(CLEAN, server_processes=less)) == []
    assert sum(leak_counts(CLEAN, CLEAN).values()) == 0


def test_what_is_left_is_counted_for_the_table() -> None:
    after = dataclasses.replace(
        CLEAN,
        zombies=2,
        cgroups=3,
        used_bytes=1.0,
        server_processes=gateway(descriptors=Counter({"socket": 6, ARENA_LINK: 9})),
    )
    assert leak_counts(CLEAN, after) == {"segments": 1, "descriptors": 2, "zombies": 2, "cgroups": 1}


@pytest.mark.slow
def test_a_process_with_a_child_that_nobody_reaps_is_seen_as_it_is() -> None:
    program = "import os, sys\nif os.fork() == 0: os._exit(0)\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "mmsup.gateway"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        family = process_tree(parent.pid)
        assert len(family) == 2
        assert process_role(parent.pid) == "gateway"
        found = take_snapshot(
            parent.pid, "/nonexistent", [("mmsup_requests_open", "a", 1.0), ("mmsup_requests_open", "b", 2.0)]
        )
        assert (found.zombies, found.processes, found.open_requests) == (1, Counter({"gateway": 1}), 3.0)
        assert found.server_processes["gateway 1"].descriptors["pipe"] >= 2
        assert len(survivors(family, [])) == 2
        parent.communicate(b"")
    assert survivors([parent.pid], []) == []
    assert os.getpid() in process_tree(os.getpid())
