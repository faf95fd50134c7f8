from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.inventory import Gpu, GpuProcess
from mmsup.supervisor.gpu.memory_release import (
    GIVE_UP_S,
    SLACK_BYTES,
    WAIT_S,
    AwaitRelease,
    GpuSnapshot,
    GpuUsage,
    InsufficientMemory,
    PendingRelease,
    check_memory,
    is_settled,
    usage_of,
)

GIB = 1 << 30
DEAD, OTHER = 7, 8


def gpu(free: int, *held: tuple[int, int]) -> Gpu:
    """A device of 80 GiB; sizes in GiB."""
    return Gpu(0, "GPU-a", "H", 80 * GIB, free * GIB, held=tuple(GpuProcess(pid, size * GIB) for pid, size in held))


def pending(before: Gpu, own: int = 0, at_s: float = 0.0) -> PendingRelease:
    return PendingRelease(DEAD, usage_of({DEAD}, before, own * GIB), at_s)


BEFORE = gpu(20, (DEAD, 50), (OTHER, 10))


def test_usage_is_what_nvml_shows_else_the_workers_own_figure() -> None:
    assert usage_of({DEAD}, BEFORE, 3) == GpuUsage(50 * GIB, 80 * GIB)
    assert usage_of({DEAD}, gpu(30), 50 * GIB) == GpuUsage(50 * GIB, 80 * GIB)
    assert usage_of({DEAD, OTHER}, BEFORE, 3).held_bytes == 60 * GIB  # a child holds the rest
    assert [usage_of({DEAD}, BEFORE, own).source for own in (0, 3)] == ["nvml", "nvml"]
    assert [usage_of({DEAD}, gpu(30), own).source for own in (0, 3)] == ["", "self"]
    # It may stand there under a pid of another namespace: its word would count twice.
    assert usage_of({DEAD}, gpu(20, (OTHER, 60)), 50 * GIB).counted_bytes == 80 * GIB


@pytest.mark.parametrize(
    ("now", "back"),
    [
        (gpu(20, (DEAD, 50), (OTHER, 10)), False),
        (gpu(20, (OTHER, 10)), False),  # in nobody's hands, and not free either
        (gpu(70, (OTHER, 10)), True),
        (gpu(80), True),
        (gpu(70), False),  # the other one has gone as well, and owes too
        (gpu(30, (OTHER, 50)), True),  # the other one has grown meanwhile
        (gpu(69, (OTHER, 10)), False),
    ],
)
def test_memory_is_released_when_all_of_it_is_accounted_for_again(now: Gpu, back: bool) -> None:
    release = pending(BEFORE)
    assert is_settled(release, GpuSnapshot(now, 1.0)) is back
    assert (check_memory(None, [release], GpuSnapshot(now, 1.0), 1.0) is None) is back


def test_a_little_less_than_before_is_released_too() -> None:
    release = pending(gpu(20, (DEAD, 50)))
    nearly = Gpu(0, "GPU-a", "H", 80 * GIB, 70 * GIB - SLACK_BYTES)
    assert is_settled(release, GpuSnapshot(nearly, 1.0))


def test_a_snapshot_from_before_the_exit_is_not_used() -> None:
    release = pending(BEFORE, at_s=5.0)
    full = gpu(80)
    assert check_memory(GIB, [release], GpuSnapshot(full, 4.9), 5.0) == AwaitRelease()
    assert not is_settled(release, GpuSnapshot(full, 4.9))
    assert check_memory(GIB, [release], GpuSnapshot(full, 5.0), 5.0) is None


@pytest.mark.parametrize(
    ("need", "now_s", "what"),
    [
        (20, 1.0, None),  # fits into what is free already
        (21, 1.0, AwaitRelease()),
        (None, 1.0, AwaitRelease()),
        (21, WAIT_S - 0.1, AwaitRelease()),
        (21, WAIT_S, InsufficientMemory(21 * GIB, 20 * GIB)),
        (20, WAIT_S, None),
        (None, WAIT_S, None),  # what nobody knows is tried
    ],
)
def test_a_load_waits_and_is_then_refused_with_figures(need: int | None, now_s: float, what: object) -> None:
    snapshot = GpuSnapshot(gpu(20, (OTHER, 10)), now_s)
    assert check_memory(need * GIB if need else None, [pending(BEFORE)], snapshot, now_s) == what


def test_of_two_releases_the_later_one_is_still_waited_for() -> None:
    releases = [pending(BEFORE), pending(BEFORE, at_s=5.0)]
    assert check_memory(30 * GIB, releases, GpuSnapshot(gpu(20), WAIT_S), WAIT_S) == AwaitRelease()


def test_without_a_pending_release_memory_is_not_checked() -> None:
    assert check_memory(90 * GIB, [], GpuSnapshot(gpu(1), 1.0), 1.0) is None


def test_a_worker_that_was_never_measured_is_waited_for_until_the_next_snapshot() -> None:
    unseen = PendingRelease(DEAD, GpuUsage(), 5.0)
    assert check_memory(None, [unseen], GpuSnapshot(gpu(0), 4.0), 5.0) == AwaitRelease()
    assert check_memory(None, [unseen], GpuSnapshot(gpu(0), 5.1), 5.1) is None


def test_memory_that_is_not_released_for_long_is_forgotten() -> None:
    release = pending(BEFORE)
    assert not is_settled(release, GpuSnapshot(gpu(20), GIVE_UP_S))
    assert is_settled(release, GpuSnapshot(gpu(20), GIVE_UP_S + 1))
