"""Free memory: kept between runs, given back when there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.startup.malloc_tuning import (
    IDLE_NS,
    MAX_FREE_BYTES,
    MMAP_BYTES,
    TrimSchedule,
    keep,
    malloc_limits,
    trim_heap,
)
from mmsup.worker.startup.resource_limits import tune_malloc

MIB = 1 << 20
SPEC = ModelSpec("m", "1", "/m/1", "model.py", "custom", "python")


@pytest.mark.parametrize(
    ("cap", "environ", "expected"),
    [
        (None, {}, (MAX_FREE_BYTES, MMAP_BYTES)),
        (4096 * MIB, {"PATH": "/bin"}, (MAX_FREE_BYTES, MMAP_BYTES)),
        (512 * MIB, {}, (64 * MIB, MMAP_BYTES)),
        (64 * MIB, {}, (8 * MIB, 8 * MIB)),
        (None, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}, None),
        (512 * MIB, {"MALLOC_TRIM_THRESHOLD_": "131072"}, None),
    ],
)
def test_what_is_kept_is_a_part_of_the_cap_unless_the_operator_said_otherwise(
    cap: int | None, environ: dict[str, str], expected: tuple[int, int] | None
) -> None:
    assert malloc_limits(cap, environ) == expected


class Library:
    """A C library that notes what it is told."""

    def __init__(self, *refused: int) -> None:
        self.told: list[tuple[int, int]] = []
        self.refused = refused

    def mallopt(self, option: int, value: int) -> int:
        self.told.append((option, value))
        return int(option not in self.refused)


def test_both_limits_are_set_and_a_refusal_is_told() -> None:
    library = Library()
    assert keep(2, 1, library)
    assert library.told == [(-1, 2), (-3, 1)]
    assert not keep(2, 1, Library(-3))


def test_another_c_library_is_left_alone() -> None:
    assert not keep(2, 1, object())
    assert not trim_heap(object())


def test_memory_is_given_back_once_after_a_while_without_runs() -> None:
    slack = TrimSchedule()
    assert not slack.is_due(10 * IDLE_NS), "nothing ran"
    slack.on_run(1)
    assert not slack.is_due(IDLE_NS)
    slack.on_run(5)
    assert not slack.is_due(IDLE_NS + 4)
    assert slack.is_due(IDLE_NS + 5)
    assert not slack.is_due(2 * IDLE_NS)


PROGRAM = """
import resource
import numpy as np
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.heap import give_back
from mmsup.worker.limits import set_heap

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

def run():
    copy = source.copy()
    return copy * 2

set_heap(ModelSpec("m", "1", "/m/1", "model.py", "custom", "python"))
source = np.ones(3 << 20, np.float32)
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
held = resident()
give_back()
print((held - resident()) >> 20)
"""


@pytest.mark.slow
def test_a_run_finds_the_memory_of_the_last_one_until_it_is_given_back() -> None:
    """Two arrays of 12 MiB: without the limits they are fresh in each run, by a thousand pages."""
    tuned = {name: value for name, value in os.environ.items() if "MALLOC" in name or "GLIBC" in name}
    assert not tuned, "another test has left these behind, and an operator's word stands"
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    faults, given_back_mib = map(int, printed.split())
    assert faults < 100, printed
    assert given_back_mib >= 20, printed


def test_a_specs_cap_reaches_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("mmsup.worker.startup.malloc_tuning.keep", lambda *limits: told.append(limits))
    tune_malloc(replace(SPEC, memory_bytes=80 * MIB), {})
    tune_malloc(replace(SPEC, memory_bytes=80 * MIB), {"GLIBC_TUNABLES": ""})
    assert told == [(10 * MIB, 10 * MIB)]
