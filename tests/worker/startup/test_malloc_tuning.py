"""Free memory: kept between runs, returned to the system when the worker is idle."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from mmsup.ipc.memory.heap import trim_heap
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.startup.malloc_tuning import (
    IDLE_NS,
    MAX_FREE_BYTES,
    MMAP_BYTES,
    TrimSchedule,
    malloc_limits,
    set_malloc_limits,
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
def test_free_memory_is_a_part_of_the_cap_unless_the_operator_tunes_malloc(
    cap: int | None, environ: dict[str, str], expected: tuple[int, int] | None
) -> None:
    assert malloc_limits(cap, environ) == expected


class Library:
    """A C library that records its options."""

    def __init__(self, *refused: int) -> None:
        self.options: list[tuple[int, int]] = []
        self.refused = refused

    def mallopt(self, option: int, value: int) -> int:
        self.options.append((option, value))
        return int(option not in self.refused)


def test_both_limits_are_set_and_a_refusal_is_reported() -> None:
    library = Library()
    assert set_malloc_limits(2, 1, library)
    assert library.options == [(-1, 2), (-3, 1)]
    assert not set_malloc_limits(2, 1, Library(-3))


def test_another_c_library_is_left_alone() -> None:
    assert not set_malloc_limits(2, 1, object())
    assert not trim_heap(object())


def test_memory_is_returned_once_after_a_while_without_runs() -> None:
    schedule = TrimSchedule()
    assert not schedule.is_due(10 * IDLE_NS), "nothing ran"
    schedule.last_run_ns = 1
    assert not schedule.is_due(IDLE_NS)
    schedule.last_run_ns = 5
    assert not schedule.is_due(IDLE_NS + 4)
    assert schedule.is_due(IDLE_NS + 5)
    assert not schedule.is_due(2 * IDLE_NS)


PROGRAM = """
import resource
import numpy as np
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.memory.heap import trim_heap
from mmsup.worker.startup.resource_limits import tune_malloc

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

def run():
    copy = source.copy()
    return copy * 2

tune_malloc(ModelSpec("m", "1", "/m/1", "model.py", "custom", "python"))
source = np.ones(3 << 20, np.float32)
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
held = resident()
trim_heap()
print((held - resident()) >> 20)
"""


@pytest.mark.slow
def test_a_run_reuses_the_memory_of_the_last_one_until_it_is_trimmed() -> None:
    """Two arrays of 12 MiB: without the limits each run takes a thousand page faults for them."""
    tuned = {name: value for name, value in os.environ.items() if "MALLOC" in name or "GLIBC" in name}
    assert not tuned, "another test has left these behind, and they take precedence"
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    faults, returned_mib = map(int, printed.split())
    assert faults < 100, printed
    assert returned_mib >= 20, printed


def test_the_cap_of_a_spec_reaches_malloc(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmsup.worker.startup.malloc_tuning.set_malloc_limits", lambda *limits: set_limits.append(limits)
    )
    tune_malloc(replace(SPEC, memory_bytes=80 * MIB), {})
    tune_malloc(replace(SPEC, memory_bytes=80 * MIB), {"GLIBC_TUNABLES": ""})
    assert set_limits == [(10 * MIB, 10 * MIB)]
