"""Where a model sleeps: the first rule that applies, by what a move gives and takes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from mmsup.supervisor.capacity.footprint import Footprint
from mmsup.supervisor.capacity.moves import MoveEstimate, MoveRefused, SleepTier, TierFacts, choose, estimate

MIB = 1 << 20
GIVES = MoveEstimate(800 * MIB, 800 * MIB, restore_s=0.1)
FACTS = TierFacts("auto", None, is_host_needed=False, host_room_bytes=1000 * MIB, estimate=GIVES, load_s=5.0)
GIVES_HOST = MoveEstimate(0, -50 * MIB)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"rule": "host-memory"}, ""),
        ({"rule": "unload"}, "`sleep: unload`"),
        ({"refused": MoveRefused.NOT_ABLE}, "its engine cannot move it"),
        ({"refused": MoveRefused.FAILED, "rule": "host-memory"}, "its last move failed"),
        ({"is_host_needed": True, "rule": "host-memory"}, "memory of the host is needed"),
        ({"host_room_bytes": 700 * MIB, "rule": "host-memory"}, "the host has room for 700MiB of 800MiB"),
        ({"host_room_bytes": -5}, "the host has room for 0B of 800MiB"),
        ({"estimate": replace(GIVES, is_within_cap=False)}, "its own `memory` has no room for it"),
        ({"estimate": GIVES_HOST, "host_room_bytes": -5}, ""),
        ({"estimate": MoveEstimate(0, 0)}, "that would give nothing back"),
        ({"estimate": MoveEstimate(0, 0), "rule": "host-memory"}, ""),
        ({"estimate": replace(GIVES, restore_s=5.0)}, "it would be back in 5.0s, and a load takes 5.0s"),
        ({"estimate": replace(GIVES, restore_s=5.0), "rule": "host-memory"}, ""),
        ({"estimate": replace(GIVES, restore_s=0.0)}, ""),
        ({"load_s": 0.0}, ""),
    ],
)
def test_the_first_rule_that_applies_decides(change: dict[str, Any], why: str) -> None:
    found = choose(replace(FACTS, **change))
    assert found.why == why
    assert found.tier is (SleepTier.UNLOADED if why else SleepTier.HOST_MEMORY)


@pytest.mark.parametrize(
    ("measured", "device_held", "allocated", "expected"),
    [
        (None, 0, 0, MoveEstimate(0, -50)),
        (None, 900, 300, MoveEstimate(300, 300)),
        (None, 900, 0, MoveEstimate(900, 900)),
        (Footprint(load_s=2.0), 900, 300, MoveEstimate(300, 300)),
        (Footprint(offloaded_bytes=30, restore_s=0.5), 0, 0, MoveEstimate(0, -70, 0.5)),
        (Footprint(offloaded_bytes=400, gpu_offloaded_bytes=600), 900, 500, MoveEstimate(300, 300)),
        (Footprint(offloaded_bytes=400), 900, 500, MoveEstimate(500, 300)),
    ],
)
def test_a_move_is_expected_to_do_what_the_last_one_did(
    measured: Footprint | None, device_held: int, allocated: int, expected: MoveEstimate
) -> None:
    assert estimate(measured, 100, device_held, allocated, None) == expected


def test_a_move_that_the_cap_of_the_model_does_not_hold_is_none() -> None:
    assert estimate(None, 100, 900, 300, 400).is_within_cap
    assert not estimate(None, 100, 900, 300, 399).is_within_cap


def test_walks_no_model_takes_more_of_the_host_than_there_is_nor_moves_without_gain() -> None:
    rng = random.Random(3)
    for _ in range(3000):
        moved = MoveEstimate(rng.randrange(0, 900 * MIB, MIB), rng.randrange(-900, 900) * MIB, rng.random() * 4)
        facts = TierFacts(
            rng.choice(("auto", "host-memory", "unload")),
            rng.choice((None, None, *MoveRefused)),
            rng.random() < 0.2,
            rng.randrange(-100, 900) * MIB,
            moved,
            rng.random() * 4,
        )
        found = choose(facts)
        assert bool(found.why) == (found.tier is SleepTier.UNLOADED)
        if found.tier is SleepTier.HOST_MEMORY:
            assert moved.host_growth_bytes <= max(facts.host_room_bytes, 0)
            assert facts.refused is None
            assert not facts.is_host_needed
            if facts.rule == "auto":
                assert moved.device_gain_bytes - min(moved.host_growth_bytes, 0) > 0
                assert moved.restore_s < facts.load_s


def test_what_is_known_of_moves_outlives_other_measurements_and_one_slow_way_back_counts_half() -> None:
    known = Footprint(100, 80, 90, load_s=2.0).with_move(Footprint(offloaded_bytes=30, gpu_offloaded_bytes=9))
    known = known.with_move(Footprint(restore_s=0.2))
    later = known.followed_by(Footprint(110, 85, 95, load_s=1.0))
    assert (later.settled_bytes, later.offloaded_bytes, later.gpu_offloaded_bytes) == (85, 30, 9)
    assert later.restore_s == 0.2
    assert later.with_move(Footprint(restore_s=1.0)).restore_s == pytest.approx(0.6)
