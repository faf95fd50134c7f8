"""Who of a shared process is at fault, and where an instance goes: tables and walks."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.ipc.specs import GROUP_KEYS, ModelSpec
from mmsup.supervisor.groups.company import ACTIVE, can_share, choose, running, seen_beside

SPEC = ModelSpec("m", "1", "/models/m/1", "model.py", "custom", "python", group="g")
NOW_NS = 10_000_000_000


def page(activity: Activity, since_ns: int = 0) -> Progress:
    return Progress(activity, since_ns, since_ns, 0, 0, 0)


@pytest.mark.parametrize(
    ("activities", "expected"),
    [
        ({"a": Activity.BUSY, "b": Activity.IDLE}, "a"),
        ({"a": Activity.IDLE, "b": Activity.LOADING}, "b"),
        ({"a": Activity.IDLE, "b": Activity.WARMING}, "b"),
        ({"a": Activity.STOPPING, "b": Activity.IDLE}, "a"),
        ({"a": Activity.IDLE, "b": Activity.IDLE}, None),
        ({"a": Activity.STARTING, "b": Activity.IDLE}, None),
        ({"a": Activity.BUSY, "b": Activity.BUSY}, None),
        ({}, None),
    ],
)
def test_the_one_that_has_the_process_is_named_and_nobody_is_guessed(
    activities: dict[str, Activity], expected: str | None
) -> None:
    assert running({name: page(each) for name, each in activities.items()}) == expected


@pytest.mark.parametrize("other", list(Activity))
def test_an_idle_member_is_late_only_while_no_other_has_the_process(other: Activity) -> None:
    seen = seen_beside(page(Activity.IDLE), [page(Activity.IDLE), page(other)], NOW_NS)
    assert seen.heartbeat_ns == (NOW_NS if other in ACTIVE else 0)
    assert seen.since_ns == seen.heartbeat_ns


@pytest.mark.parametrize("own", [each for each in Activity if each is not Activity.IDLE])
def test_the_page_of_one_that_has_the_process_is_its_own(own: Activity) -> None:
    assert seen_beside(page(own), [page(Activity.BUSY)], NOW_NS) == page(own)


def test_a_page_that_is_ahead_of_the_clock_stays_so() -> None:
    ahead = page(Activity.IDLE, NOW_NS + 5)
    assert seen_beside(ahead, [page(Activity.BUSY)], NOW_NS) == ahead


@pytest.mark.parametrize(
    ("held", "instances", "expected"),
    [
        ([], 1, None),
        ([0], 1, 0),
        ([1], 1, 0),  # a reload: beside the older one
        ([1], 2, None),
        ([1, 0], 2, 1),
        ([1, 1], 2, 0),
        ([2, 1], 2, 1),
        ([0, 0, 0], 2, 0),  # processes that are there yet are used before others are started
    ],
)
def test_an_instance_goes_where_the_fewest_of_its_version_are(
    held: list[int], instances: int, expected: int | None
) -> None:
    assert choose(held, instances) == expected


def test_a_group_never_has_more_processes_than_instances_and_each_has_one_of_every_model() -> None:
    rng = random.Random(5)
    for _ in range(300):
        instances, models = rng.randint(1, 4), rng.randint(1, 5)
        processes: list[dict[int, int]] = []
        joins = [model for model in range(models) for _ in range(instances)]
        rng.shuffle(joins)
        for model in joins:
            found = choose([each.get(model, 0) for each in processes], instances)
            if found is None:
                processes.append({})
            at = processes[-1 if found is None else found]
            at[model] = at.get(model, 0) + 1
        assert len(processes) == instances
        assert all(each == dict.fromkeys(range(models), 1) for each in processes)


OTHER_VALUES: dict[str, Any] = {
    "python": "/opt/python",
    "env": {"A": "1"},
    "device": "cuda",
    "instances": 2,
    "memory_bytes": 1 << 30,
    "recycle_memory_bytes": 1 << 30,
    "gpu_memory_bytes": 1 << 30,
}


def test_models_share_what_is_of_the_process_and_may_differ_in_all_else() -> None:
    assert set(OTHER_VALUES) == set(GROUP_KEYS.values())
    for field, value in OTHER_VALUES.items():
        assert not can_share(SPEC, replace(SPEC, **{field: value})), field
    assert can_share(SPEC, replace(SPEC, name="n", engine="ort", deadline_s=1.0, max_queue=7, priority=1))
