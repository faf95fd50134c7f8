from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.supervisor.instances.liveness import (
    HEARTBEAT_S,
    MISSED_HEARTBEATS,
    NS,
    Alive,
    FirstRuns,
    Hung,
    Liveness,
    LivenessLimits,
    LoadTimeout,
    PageTimes,
    judge,
    next_check_ns,
    suspected_since_ns,
)

LIMITS = LivenessLimits(hang_s=0.5, load_s=10.0, spawned_ns=0, deadline_s=20.0)
NOW = 100 * NS


def page(activity: Activity, *, since_s: float = 0.0, beat_s: float = 0.0, batches: int = 1) -> Progress:
    """Times are ages."""
    return Progress(activity, NOW - round(since_s * NS), NOW - round(beat_s * NS), batches, batches, 0)


CASES: list[tuple[Progress, float | None, float, type[Liveness]]] = [
    (page(Activity.BUSY, since_s=0.4), None, 0.4, Alive),
    (page(Activity.BUSY, since_s=0.4), 3.0, 0.4, Alive),
    (page(Activity.BUSY, since_s=0.51), None, 0.51, Hung),
    (page(Activity.BUSY, since_s=0.51, beat_s=0.0), 0.6, 0.51, Hung),
    (page(Activity.BUSY, since_s=19.9), 19.0, 0.0, Alive),
    (page(Activity.BUSY, since_s=20.1), None, 0.0, Hung),
    (page(Activity.BUSY, since_s=9.9, batches=0), None, 9.9, Alive),
    (page(Activity.BUSY, since_s=10.1, batches=0), None, 10.1, Hung),
    (page(Activity.BUSY, since_s=19.9, batches=0), None, 0.0, Alive),
    (page(Activity.BUSY, since_s=20.1, batches=0), None, 0.0, Hung),
    (page(Activity.MOVING, since_s=0.51, batches=0), None, 0.4, Alive),
    (page(Activity.MOVING, since_s=0.51, batches=0), None, 0.51, Hung),
    (page(Activity.MOVING, since_s=60), None, 0.0, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=0.4), None, 0.0, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=1.4), None, 1.4, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=1.6), None, 1.6, Hung),
    (page(Activity.IDLE, since_s=60, beat_s=1.6), None, 0.2, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=20.1), None, 0.2, Hung),
    (page(Activity.IDLE, since_s=60, beat_s=0.1), 0.2, 0.0, Alive),
    (page(Activity.IDLE, since_s=60, beat_s=0.1), 0.6, 0.0, Hung),
    (page(Activity.IDLE, since_s=60, beat_s=1.1), 0.6, 0.3, Alive),
    (page(Activity.IDLE, since_s=0.1, beat_s=0.1), 0.6, 0.0, Alive),
    (page(Activity.CALLING, since_s=60, beat_s=0.4), 60, 0.0, Alive),
    (page(Activity.CALLING, since_s=60, beat_s=1.6), None, 1.6, Hung),
    (page(Activity.STOPPING, since_s=60, beat_s=60), 60, 0.0, Alive),
    (page(Activity.STARTING), None, 0.0, LoadTimeout),
    (page(Activity.LOADING, since_s=1), None, 0.0, LoadTimeout),
    (page(Activity.WARMING, since_s=1), None, 0.0, LoadTimeout),
]


@pytest.mark.parametrize(("progress", "pending_s", "stalled_s", "verdict"), CASES)
def test_liveness_follows_from_page_progress_and_pending_requests(
    progress: Progress, pending_s: float | None, stalled_s: float, verdict: type[Liveness]
) -> None:
    assert isinstance(judge(progress, LIMITS, pending_s, NOW, stalled_s), verdict)


def test_a_load_within_its_limit_is_alive_however_stale_its_page() -> None:
    limits = LivenessLimits(hang_s=0.5, load_s=10.0, spawned_ns=NOW - 9 * NS)
    for activity in (Activity.STARTING, Activity.LOADING, Activity.WARMING):
        assert judge(page(activity, since_s=9, beat_s=9), limits, None, NOW, 9.0) == Alive()


def test_a_warm_up_run_has_the_limit_of_the_load_and_not_that_of_a_hang() -> None:
    run = page(Activity.BUSY, since_s=8, batches=0)
    within = replace(LIMITS, spawned_ns=NOW - 9 * NS, is_ready=False)
    assert judge(run, within, None, NOW, 8.0) == Alive()
    beyond = judge(run, replace(within, spawned_ns=NOW - 11 * NS), None, NOW, 8.0)
    assert beyond == LoadTimeout("still warming after 10 s, the load timeout")


def test_a_run_may_take_as_long_as_it_may_pause_where_callers_wait_for_less() -> None:
    limits = replace(LIMITS, hang_s=30.0, deadline_s=0.25)
    assert judge(page(Activity.BUSY, since_s=29), limits, None, NOW, 29.0) == Alive()
    assert isinstance(judge(page(Activity.BUSY, since_s=31), limits, None, NOW, 0.0), Hung)


def test_reasons_name_the_key_to_set() -> None:
    stalled = judge(page(Activity.BUSY, since_s=0.7), LIMITS, None, NOW, 0.7)
    assert stalled == Hung(
        "a run has made no progress for 0.7 s; if it may pause for so long, set a longer `hang_limit` for its model"
    )
    moving = judge(page(Activity.MOVING, since_s=0.7, batches=0), LIMITS, None, NOW, 0.7)
    assert moving == Hung(
        "its model has made no progress in a move for 0.7 s; if it may pause for so long, "
        "set a longer `hang_limit` for its model"
    )
    endless = judge(page(Activity.BUSY, since_s=20.1), LIMITS, None, NOW, 0.0)
    assert endless == Hung(
        "a run has not ended after 20.1 s; if it may take so long, set a longer `deadline` for its model"
    )


@pytest.mark.parametrize("activity", [Activity.BUSY, Activity.IDLE])
@pytest.mark.parametrize("ahead_ns", [NS // 10, NS, 1 << 62])
def test_a_time_in_the_future_postpones_no_limit(activity: Activity, ahead_ns: int) -> None:
    times, said = PageTimes(), Progress(activity, NOW + ahead_ns, NOW + ahead_ns, 1, 1, 0)
    now, looks = NOW, 0
    while not isinstance(judge(times.corrected(said, now), LIMITS, None, now, (now - NOW) / NS), Hung):
        now = next_check_ns(times.corrected(said, now), LIMITS, now, now + NS // 8)
        looks += 1
    limit_s = LIMITS.hang_s if activity is Activity.BUSY else LIMITS.hang_s + MISSED_HEARTBEATS * HEARTBEAT_S
    assert limit_s * NS <= now - NOW <= limit_s * NS + NS // 8
    assert looks <= 16


def test_a_request_pending_at_a_loop_that_is_idle_since_a_future_time_is_found() -> None:
    times, said = PageTimes(), Progress(Activity.IDLE, NOW + NS, NOW, 0, 0, 0)
    assert judge(times.corrected(said, NOW), LIMITS, 0.6, NOW, 0.0) == Alive()
    later = NOW + round(0.6 * NS)
    times.corrected(said, later)
    turning = Progress(Activity.IDLE, NOW + NS, later, 0, 0, 0)
    assert isinstance(judge(times.corrected(turning, later), LIMITS, 1.2, later, 0.0), Hung)


def test_a_page_that_makes_progress_is_used_again() -> None:
    times = PageTimes()
    ahead = Progress(Activity.BUSY, 1 << 62, 1 << 62, 0, 0, 0)
    assert times.corrected(ahead, NOW).since_ns == NOW
    honest = Progress(Activity.BUSY, NOW + NS, NOW + NS, 0, 0, 0)
    assert times.corrected(honest, NOW + 2 * NS) == honest
    assert times.corrected(ahead, NOW + 3 * NS).since_ns == NOW + 3 * NS


def test_the_next_check_is_not_later_than_the_first_failure() -> None:
    """Whatever a worker without progress does meanwhile, a check at the announced time comes before its limit."""
    for seed in range(3000):
        rng = random.Random(seed)
        spawned_ns = NOW - round(rng.uniform(0, 400) * NS)
        limits = LivenessLimits(rng.uniform(0.1, 5), rng.uniform(1, 300), spawned_ns, rng.uniform(0.1, 60))
        progress = page(
            rng.choice(list(Activity)), since_s=rng.uniform(0, 6), beat_s=rng.uniform(0, 8), batches=rng.randrange(2)
        )
        since_ns = suspected_since_ns(progress, limits, NOW)
        stalled_s = 0.0 if since_ns is None else (NOW - since_ns) / NS
        if isinstance(judge(progress, limits, None, NOW, stalled_s), Hung | LoadTimeout):
            continue
        look = next_check_ns(progress, limits, NOW, NOW + NS)
        assert look > NOW
        if since_ns is not None:
            assert look <= NOW + NS
        elif progress.activity in (Activity.IDLE, Activity.STANDBY):
            assert look <= NOW + limits.hang_s * NS / 4 + 2
        assert look <= NOW + max(limits.hang_s, 1.0) * NS + 2


def test_only_the_first_life_grants_its_first_run_the_limit_of_a_load() -> None:
    first_runs = FirstRuns()
    granted = []
    for seen in (page(Activity.BUSY, since_s=0.1, batches=0), page(Activity.IDLE)):  # and the first run is over
        assert not first_runs.observe(seen, LIMITS, NOW)
        granted.append(first_runs.may_be_slow)
    assert granted == [True, False]
    later = replace(LIMITS, slow_first_run=False)
    assert isinstance(judge(page(Activity.BUSY, since_s=0.6, batches=0), later, None, NOW, 0.6), Hung)


def test_a_first_run_that_was_long_is_granted_the_same_in_the_next_life() -> None:
    first_runs = FirstRuns()
    assert first_runs.observe(page(Activity.BUSY, since_s=0.3, batches=0), LIMITS, NOW)
    assert first_runs.may_be_slow


def test_a_hang_right_after_a_quick_first_run_is_looked_at_as_soon_as_any_other() -> None:
    first_run = page(Activity.BUSY, since_s=0.01, batches=0)
    far_ns = NOW + round(LIMITS.load_s / 4 * NS)  # the next look at a run that may take as long as a load
    assert next_check_ns(first_run, LIMITS, NOW, far_ns) <= NOW + LIMITS.hang_s * NS / 4 + 1


def test_a_hang_right_after_the_load_is_looked_at_as_soon_as_any_other() -> None:
    still_warming = page(Activity.WARMING)
    recent = replace(LIMITS, spawned_ns=NOW)
    assert next_check_ns(still_warming, recent, NOW, 0) <= NOW + recent.hang_s * NS / 4 + 1
