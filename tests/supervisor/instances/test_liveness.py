from __future__ import annotations

import random

import pytest

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.supervisor.instances.liveness import (
    HEARTBEAT_S,
    MISSED_HEARTBEATS,
    NS,
    Alive,
    Hung,
    Liveness,
    LivenessLimits,
    LoadTimeout,
    PageTimes,
    judge,
    next_check_ns,
)

LIMITS = LivenessLimits(hang_s=0.5, load_s=10.0, spawned_ns=0)
NOW = 100 * NS


def page(activity: Activity, *, since_s: float = 0.0, beat_s: float = 0.0) -> Progress:
    """Times are ages."""
    return Progress(activity, NOW - round(since_s * NS), NOW - round(beat_s * NS), 0, 0, 0)


CASES: list[tuple[Progress, float | None, type[Liveness]]] = [
    (page(Activity.BUSY, since_s=0.4), None, Alive),
    (page(Activity.BUSY, since_s=0.4), 3.0, Alive),
    (page(Activity.BUSY, since_s=0.51), None, Hung),
    (page(Activity.BUSY, since_s=0.51, beat_s=0.0), 0.6, Hung),
    (page(Activity.IDLE, since_s=60, beat_s=0.4), None, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=1.4), None, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=1.6), None, Hung),
    (page(Activity.IDLE, since_s=60, beat_s=0.1), 0.2, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=0.1), 0.6, Hung),
    (page(Activity.IDLE, since_s=0.1, beat_s=0.1), 0.6, Alive),
    (page(Activity.STOPPING, since_s=60, beat_s=60), 60, Alive),
    (page(Activity.STARTING), None, LoadTimeout),
    (page(Activity.LOADING, since_s=1), None, LoadTimeout),
    (page(Activity.WARMING, since_s=1), None, LoadTimeout),
]


@pytest.mark.parametrize(("progress", "pending_s", "verdict"), CASES)
def test_liveness_follows_from_page_and_pending_requests(
    progress: Progress, pending_s: float | None, verdict: type[Liveness]
) -> None:
    assert isinstance(judge(progress, LIMITS, pending_s, NOW), verdict)


def test_a_load_within_its_limit_is_alive_however_stale_its_page() -> None:
    limits = LivenessLimits(hang_s=0.5, load_s=10.0, spawned_ns=NOW - 9 * NS)
    for activity in (Activity.STARTING, Activity.LOADING, Activity.WARMING):
        assert judge(page(activity, since_s=9, beat_s=9), limits, None, NOW) == Alive()


def test_a_busy_worker_that_makes_progress_is_never_hung() -> None:
    for step in range(1000):
        now = NOW + step * NS // 10
        progress = Progress(Activity.BUSY, now - NS // 5, now - NS // 5, step, step, 0)
        assert not isinstance(judge(progress, LIMITS, 30.0, now), Hung)


def test_reasons_name_the_limit() -> None:
    verdict = judge(page(Activity.BUSY, since_s=0.7), LIMITS, None, NOW)
    assert verdict == Hung("a batch has run for 0.7 s; the limit is 0.5 s")


@pytest.mark.parametrize("activity", [Activity.BUSY, Activity.IDLE])
@pytest.mark.parametrize("ahead_ns", [NS // 10, NS, 1 << 62])
def test_a_time_in_the_future_postpones_no_limit(activity: Activity, ahead_ns: int) -> None:
    times, said = PageTimes(), Progress(activity, NOW + ahead_ns, NOW + ahead_ns, 0, 0, 0)
    now, looks = NOW, 0
    while not isinstance(judge(times.corrected(said, now), LIMITS, None, now), Hung):
        now = next_check_ns(times.corrected(said, now), LIMITS, now)
        looks += 1
    limit_s = LIMITS.hang_s if activity is Activity.BUSY else LIMITS.hang_s + MISSED_HEARTBEATS * HEARTBEAT_S
    assert now - NOW == round(limit_s * NS) + 1
    assert looks <= 3


def test_a_request_pending_at_a_loop_that_is_idle_since_a_future_time_is_found() -> None:
    times, said = PageTimes(), Progress(Activity.IDLE, NOW + NS, NOW, 0, 0, 0)
    assert judge(times.corrected(said, NOW), LIMITS, 0.6, NOW) == Alive()
    later = NOW + round(0.6 * NS)
    assert isinstance(judge(times.corrected(said, later), LIMITS, 1.2, later), Hung)


def test_a_page_that_makes_progress_is_used_again() -> None:
    times = PageTimes()
    ahead = Progress(Activity.BUSY, 1 << 62, 1 << 62, 0, 0, 0)
    assert times.corrected(ahead, NOW).since_ns == NOW
    honest = Progress(Activity.BUSY, NOW + NS, NOW + NS, 0, 0, 0)
    assert times.corrected(honest, NOW + 2 * NS) == honest
    assert times.corrected(ahead, NOW + 3 * NS).since_ns == NOW + 3 * NS


def test_the_next_check_is_not_later_than_the_first_failure() -> None:
    """Whatever a worker without progress does meanwhile, a check at the announced time finds it."""
    for seed in range(3000):
        rng = random.Random(seed)
        limits = LivenessLimits(rng.uniform(0.1, 5), rng.uniform(1, 300), NOW - round(rng.uniform(0, 400) * NS))
        progress = page(rng.choice(list(Activity)), since_s=rng.uniform(0, 6), beat_s=rng.uniform(0, 8))
        if isinstance(judge(progress, limits, None, NOW), Hung | LoadTimeout):
            continue
        look = next_check_ns(progress, limits, NOW)
        assert look > NOW
        turned = Progress(Activity.BUSY, NOW, NOW, 0, 0, 0)  # the worst it can do: begin to hang right now
        bad_at = NOW + round(limits.hang_s * NS) + 1
        assert isinstance(judge(turned, limits, None, bad_at), Hung)
        if progress.activity is not Activity.STOPPING:
            assert look <= bad_at or progress.activity is Activity.BUSY
        if progress.activity is Activity.BUSY:
            assert isinstance(judge(progress, limits, None, look), Hung)
