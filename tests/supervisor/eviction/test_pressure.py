"""When memory runs short: how much is given back, from what the kernel says, as it was recorded on real machines."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmsup.ipc.memory.available_memory import available_bytes, total_bytes
from mmsup.supervisor.eviction.pressure import (
    MAX_RESERVE_BYTES,
    MIN_RESERVE_BYTES,
    STEP_S,
    PressureFacts,
    relief,
    reserve_bytes,
)
from mmsup.supervisor.eviction.pressure_watch import REPEAT_S, PressureWatch
from mmsup.supervisor.linux.memory_pressure import MemoryPressure, Stalls, read_pressure

MIB, GIB = 1 << 20, 1 << 30
CALM = PressureFacts(1000.0, 16 * GIB, 8 * GIB, 0, MemoryPressure(Stalls(), Stalls()))
SHORT = replace(CALM, available_bytes=1 * GIB)
"""Less than a tenth is left, more than the reserve."""


def stalling(facts: PressureFacts, own: Stalls = Stalls(), machine: Stalls = Stalls()) -> PressureFacts:  # noqa: B008
    return replace(facts, kernel=replace(facts.kernel, own=own, machine=machine))


@pytest.mark.parametrize(
    ("facts", "missing_mib"),
    [
        (CALM, None),
        (SHORT, None),
        (replace(CALM, available_bytes=512 * MIB), None),
        (replace(CALM, available_bytes=500 * MIB), 268),
        (replace(CALM, available_bytes=500 * MIB, returning_bytes=200 * MIB), 68),
        (replace(CALM, available_bytes=500 * MIB, returning_bytes=300 * MIB), None),
        (stalling(CALM, own=Stalls(25, 0)), 328),
        (stalling(CALM, own=Stalls(15, 6)), 328),
        (stalling(CALM, own=Stalls(15, 4)), None),
        (stalling(CALM, machine=Stalls(90, 60)), None),  # another container's
        (stalling(SHORT, machine=Stalls(90, 60)), 328),
        (replace(CALM, kernel=replace(CALM.kernel, high_events=7, over_high_bytes=MIB)), None),
        (replace(CALM, kernel=replace(CALM.kernel, high_events=8, over_high_bytes=MIB)), 820),
        (replace(CALM, kernel=replace(CALM.kernel, high_events=8, over_high_bytes=-GIB)), None),
        (replace(CALM, over_budget_bytes=70 * MIB), 70),
        (replace(CALM, over_budget_bytes=70 * MIB, returning_bytes=70 * MIB), None),
    ],
)
def test_how_much_is_given_back(facts: PressureFacts, missing_mib: int | None) -> None:
    found = relief(facts, 7, -math.inf)
    assert (None if found is None else round(found.missing_bytes / MIB)) == missing_mib


def test_stalls_are_answered_step_by_step() -> None:
    facts = stalling(CALM, own=Stalls(50, 20))
    assert relief(facts, 0, facts.at_s - STEP_S + 1) is None
    found = relief(facts, 0, facts.at_s - STEP_S)
    assert found is not None
    assert found.is_step
    assert found.why == "tasks waited for memory in 50% of the last seconds, all of them in 20%"


@pytest.mark.parametrize(
    ("total", "reserve"), [(GIB, MIN_RESERVE_BYTES), (16 * GIB, GIB // 2), (1 << 40, MAX_RESERVE_BYTES)]
)
def test_the_reserve_suits_small_and_large_machines(total: int, reserve: int) -> None:
    assert reserve_bytes(total) == reserve


def test_less_memory_never_means_that_less_is_given_back() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        total = rng.randrange(64 * MIB, 64 * GIB)
        stalls = Stalls(rng.uniform(0, 100), rng.uniform(0, 50))
        kernel = MemoryPressure(stalls, Stalls(), rng.randrange(3), rng.randrange(-GIB, GIB))
        more = rng.randrange(total)
        facts = PressureFacts(0.0, total, rng.randrange(more + 1), rng.choice([0, rng.randrange(GIB)]), kernel)
        tight, roomy = relief(facts, 1, -math.inf), relief(replace(facts, available_bytes=more), 1, -math.inf)
        assert (tight.missing_bytes if tight else 0) >= (roomy.missing_bytes if roomy else 0)
        assert tight is None or tight.missing_bytes > 0


RECORDED = {
    "meminfo": "MemTotal:       16384000 kB\nMemFree:          102400 kB\nMemAvailable:     409600 kB\n",
    "pressure": "some avg10=31.52 avg60=12.00 avg300=3.11 total=20663975\n"
    "full avg10=9.04 avg60=4.00 avg300=1.00 total=3059387\n",
}


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_a_short_machine_is_read_from_its_files(tmp_path: Path) -> None:
    for name, text in RECORDED.items():
        (tmp_path / name).write_text(text)
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    kernel = read_pressure(tmp_path / "pressure", own, tmp_path / "no")
    assert kernel == MemoryPressure(Stalls(31.52, 9.04), Stalls())
    meminfo = tmp_path / "meminfo"
    total, available = (
        each(meminfo=meminfo, own_file=own, root=tmp_path / "no") for each in (total_bytes, available_bytes)
    )
    found = relief(PressureFacts(0.0, total, available, 0, kernel), 0, -math.inf)
    assert found is not None
    assert found.why == "400MiB of 15.6GiB are left"
    assert found.missing_bytes == round(total / 32 * 1.5) - 400 * MIB


def test_the_groups_above_are_read_and_the_worst_one_counts(tmp_path: Path) -> None:
    (tmp_path / "pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n0::/service/core\n")
    root = tmp_path / "tree"
    stalls = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10={} avg60=0.00 avg300=0.00 total=1\n"
    write_group(root, cgroup_controllers="memory\n", memory_pressure=stalls.format(99.0, 99.0))
    events = "low 0\nhigh {}\nmax 0\noom 0\n"
    write_group(
        root / "service",
        cgroup_controllers="memory\n",
        memory_pressure=stalls.format(41.5, 7.25),
        memory_high="1000\n",
        memory_current="1200\n",
        memory_events=events.format(12),
    )
    write_group(
        root / "service" / "core", memory_pressure=stalls.format(0.5, 0.0), memory_high="max\n", memory_current="5"
    )
    found = read_pressure(tmp_path / "pressure", tmp_path / "cgroup", root)
    assert found == MemoryPressure(Stalls(), Stalls(41.5, 7.25), 12, 200)


def test_a_kernel_that_tells_nothing_is_no_pressure(tmp_path: Path) -> None:
    assert read_pressure(tmp_path / "no", tmp_path / "no", tmp_path) == MemoryPressure(Stalls(), Stalls())


class Watched:
    """A watch whose facts a test sets; what it gave back, and what it has recorded."""

    def __init__(self, held_bytes: int) -> None:
        self.facts, self.held_bytes = CALM, held_bytes
        self.given: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.watch = PressureWatch(lambda: self.facts, self._give_back, self)  # type: ignore[arg-type]  # a double

    def record(self, name: str, text: str, **fields: Any) -> None:
        self.events.append({"event": name, "text": text, **fields})

    def _give_back(self, missing_bytes: int, _why: str, _reason: str) -> int:
        self.given.append(min(missing_bytes, self.held_bytes))
        return self.given[-1]


@pytest.mark.fault("F17")
def test_the_watch_has_models_go_and_says_why() -> None:
    watched = Watched(GIB)
    watched.watch.check()
    assert watched.given == []
    watched.facts = replace(CALM, available_bytes=500 * MIB)
    watched.watch.check()
    assert watched.given == [268 * MIB]
    (event,) = watched.events
    assert event["event"] == "memory_pressure"
    assert event["text"] == "500MiB of 16GiB are left: models give 268MiB back"
    watched.facts = replace(watched.facts, returning_bytes=268 * MIB)
    watched.watch.check()
    assert len(watched.given) == 1, "it is on its way"


def test_the_watch_repeats_seldom_that_nobody_may_go() -> None:
    watched = Watched(0)
    for after_s in (0.0, 1.0, REPEAT_S - 1, REPEAT_S + 1):
        watched.facts = replace(CALM, at_s=CALM.at_s + after_s, available_bytes=500 * MIB)
        watched.watch.check()
    assert [each["text"] for each in watched.events] == ["500MiB of 16GiB are left: no model may go"] * 2
    assert len(watched.given) == 4


def test_events_of_before_the_first_look_are_not_answered() -> None:
    watched = Watched(GIB)
    watched.facts = replace(CALM, kernel=replace(CALM.kernel, high_events=8, over_high_bytes=MIB))
    watched.watch.check()
    assert watched.given == []
    watched.facts = replace(CALM, kernel=replace(CALM.kernel, high_events=9, over_high_bytes=MIB))
    watched.watch.check()
    assert len(watched.given) == 1
