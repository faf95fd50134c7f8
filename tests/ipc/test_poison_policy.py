"""Poison policy: which requests become entries, are blocked, and are cleared."""

from __future__ import annotations

import random

import pytest

from mmsup.ipc.poison_policy import BLOCKED_LIMIT, ENTRIES_LIMIT, EXPIRY_S, PoisonEntry, PoisonList

NOW_S = 1000.0


def worker_exited(entries: PoisonList, *fingerprints: bytes, alone: bool = False, now_s: float = NOW_S) -> None:
    entries.worker_exited(fingerprints, "1", ran_alone=alone, now_s=now_s)


def state_of(entries: PoisonList, fingerprint: bytes, now_s: float = NOW_S) -> str:
    entry = entries.find(fingerprint, now_s)
    return "unknown" if entry is None else "blocked" if entry.blocked else "suspect"


@pytest.mark.parametrize(
    ("before", "happens", "after"),
    [
        ("unknown", "worker exits, batch of several", "suspect"),
        ("unknown", "worker exits, alone", "suspect"),
        ("unknown", "worker survives", "unknown"),
        ("suspect", "worker exits, batch of several", "suspect"),
        ("suspect", "worker exits, alone", "blocked"),
        ("suspect", "worker survives", "unknown"),
        ("blocked", "worker exits, batch of several", "blocked"),
        ("blocked", "worker exits, alone", "blocked"),
        ("blocked", "worker survives", "blocked"),
    ],
)
def test_every_transition_of_the_table(before: str, happens: str, after: str) -> None:
    entries = PoisonList()
    for _ in range(["unknown", "suspect", "blocked"].index(before)):
        worker_exited(entries, b"x", alone=True)
    assert state_of(entries, b"x") == before
    if happens == "worker survives":
        assert entries.clear_suspect(b"x") is (before == "suspect")
    else:
        worker_exited(entries, b"x", alone=happens.endswith("alone"))
    assert state_of(entries, b"x") == after


def test_the_request_of_a_batch_that_kills_a_worker_alone_is_blocked_and_the_others_are_cleared() -> None:
    entries = PoisonList()
    batch = [bytes([number]) for number in range(8)]
    worker_exited(entries, *batch)
    assert {state_of(entries, each) for each in batch} == {"suspect"}
    for each in batch:
        if each == b"\5":
            worker_exited(entries, each, alone=True)
        else:
            assert entries.clear_suspect(each)
    assert [state_of(entries, each) for each in batch] == ["unknown"] * 5 + ["blocked"] + ["unknown"] * 2
    (entry,) = entries.entries()
    assert (entry.deaths, entry.version) == (2, "1")


def test_an_entry_expires_after_its_last_worker_exit() -> None:
    entries = PoisonList()
    worker_exited(entries, b"x", alone=True)
    worker_exited(entries, b"x", alone=True, now_s=NOW_S + 100)
    late_s = NOW_S + 100 + EXPIRY_S
    assert state_of(entries, b"x", late_s - 1) == "blocked"
    assert state_of(entries, b"x", late_s) == "unknown"
    entries.expire(late_s - 1)
    assert len(entries) == 1
    entries.expire(late_s)
    assert not entries


def test_an_expired_entry_starts_anew() -> None:
    entries = PoisonList()
    worker_exited(entries, b"x", alone=True)
    worker_exited(entries, b"x", alone=True, now_s=NOW_S + EXPIRY_S)
    assert state_of(entries, b"x", NOW_S + EXPIRY_S) == "suspect"


@pytest.mark.parametrize("order", [0, 1])
def test_on_merging_the_stricter_entry_wins_in_either_order(order: int) -> None:
    both = [
        PoisonEntry(b"x", "1", 1, blocked=False, until_s=20.0),
        PoisonEntry(b"x", "1", 2, blocked=True, until_s=10.0),
    ]
    entries = PoisonList()
    for each in (both[order], both[1 - order]):
        entries.merge([each])
    assert entries.entries() == (PoisonEntry(b"x", "1", 2, blocked=True, until_s=20.0),)


def test_lists_are_bounded_and_the_oldest_entry_is_removed() -> None:
    entries = PoisonList()
    for number in range(BLOCKED_LIMIT + 5):
        for _ in range(2):
            worker_exited(entries, number.to_bytes(4, "big"), alone=True)
    assert len(entries) == BLOCKED_LIMIT
    assert state_of(entries, (4).to_bytes(4, "big")) == "unknown"
    assert state_of(entries, (5).to_bytes(4, "big")) == "blocked"
    worker_exited(entries, *[number.to_bytes(5, "big") for number in range(3 * ENTRIES_LIMIT)])
    assert len(entries) == ENTRIES_LIMIT


def test_only_a_suspect_that_killed_a_worker_alone_is_ever_blocked() -> None:
    rng = random.Random(7)
    fingerprints = [bytes([number]) for number in range(6)]
    for _ in range(200):
        entries, expected = PoisonList(), dict.fromkeys(fingerprints, "unknown")
        for _ in range(30):
            batch = rng.sample(fingerprints, rng.choice((1, 1, 2, 3)))
            if rng.random() < 0.5 and len(batch) == 1:
                entries.clear_suspect(batch[0])
                expected[batch[0]] = "blocked" if expected[batch[0]] == "blocked" else "unknown"
                continue
            worker_exited(entries, *batch, alone=len(batch) == 1)
            for each in batch:
                is_blocked = expected[each] == "blocked" or (expected[each] == "suspect" and len(batch) == 1)
                expected[each] = "blocked" if is_blocked else "suspect"
        assert {each: state_of(entries, each) for each in fingerprints} == expected
