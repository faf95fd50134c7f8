"""Who is suspect after a death, who is blocked, and who is free again."""

from __future__ import annotations

import random

import pytest

from mmsup.ipc.poison_policy import BLOCKED_LIMIT, ENTRIES_LIMIT, EXPIRY_S, PoisonEntry, PoisonList

NOW_S = 1000.0


def died(suspects: PoisonList, *prints: bytes, alone: bool = False, now_s: float = NOW_S) -> None:
    suspects.worker_exited(prints, "1", ran_alone=alone, now_s=now_s)


def word(suspects: PoisonList, print_: bytes, now_s: float = NOW_S) -> str:
    case = suspects.find(print_, now_s)
    return "nothing" if case is None else "blocked" if case.blocked else "suspect"


@pytest.mark.parametrize(
    ("before", "happens", "after"),
    [
        ("nothing", "dies with others", "suspect"),
        ("nothing", "dies alone", "suspect"),
        ("nothing", "lives", "nothing"),
        ("suspect", "dies with others", "suspect"),
        ("suspect", "dies alone", "blocked"),
        ("suspect", "lives", "nothing"),
        ("blocked", "dies with others", "blocked"),
        ("blocked", "dies alone", "blocked"),
        ("blocked", "lives", "blocked"),
    ],
)
def test_every_cell_of_the_table_is_as_it_says(before: str, happens: str, after: str) -> None:
    suspects = PoisonList()
    for _ in range(["nothing", "suspect", "blocked"].index(before)):
        died(suspects, b"x", alone=True)
    assert word(suspects, b"x") == before
    if happens == "lives":
        assert suspects.clear_suspect(b"x") is (before == "suspect")
    else:
        died(suspects, b"x", alone=happens.endswith("alone"))
    assert word(suspects, b"x") == after


def test_of_a_batch_the_one_that_dies_alone_is_blocked_and_the_others_go_free() -> None:
    suspects = PoisonList()
    batch = [bytes([number]) for number in range(8)]
    died(suspects, *batch)
    assert {word(suspects, each) for each in batch} == {"suspect"}
    for each in batch:
        if each == b"\5":
            died(suspects, each, alone=True)
        else:
            assert suspects.clear_suspect(each)
    assert [word(suspects, each) for each in batch] == ["nothing"] * 5 + ["blocked"] + ["nothing"] * 2
    (case,) = suspects.entries()
    assert (case.deaths, case.version) == (2, "1")


def test_a_word_holds_for_its_time_from_the_last_death_on() -> None:
    suspects = PoisonList()
    died(suspects, b"x", alone=True)
    died(suspects, b"x", alone=True, now_s=NOW_S + 100)
    late_s = NOW_S + 100 + EXPIRY_S
    assert word(suspects, b"x", late_s - 1) == "blocked"
    assert word(suspects, b"x", late_s) == "nothing"
    suspects.expire(late_s - 1)
    assert len(suspects) == 1
    suspects.expire(late_s)
    assert not suspects


def test_what_expired_begins_anew() -> None:
    suspects = PoisonList()
    died(suspects, b"x", alone=True)
    died(suspects, b"x", alone=True, now_s=NOW_S + EXPIRY_S)
    assert word(suspects, b"x", NOW_S + EXPIRY_S) == "suspect"


@pytest.mark.parametrize("order", [0, 1])
def test_of_two_words_the_graver_holds_in_whatever_order_they_come(order: int) -> None:
    words = [
        PoisonEntry(b"x", "1", 1, blocked=False, until_s=20.0),
        PoisonEntry(b"x", "1", 2, blocked=True, until_s=10.0),
    ]
    suspects = PoisonList()
    for each in (words[order], words[1 - order]):
        suspects.merge([each])
    assert suspects.entries() == (PoisonEntry(b"x", "1", 2, blocked=True, until_s=20.0),)


def test_lists_are_bounded_and_the_oldest_word_gives_way() -> None:
    suspects = PoisonList()
    for number in range(BLOCKED_LIMIT + 5):
        for _ in range(2):
            died(suspects, number.to_bytes(4, "big"), alone=True)
    assert len(suspects) == BLOCKED_LIMIT
    assert word(suspects, (4).to_bytes(4, "big")) == "nothing"
    assert word(suspects, (5).to_bytes(4, "big")) == "blocked"
    died(suspects, *[number.to_bytes(5, "big") for number in range(3 * ENTRIES_LIMIT)])
    assert len(suspects) == ENTRIES_LIMIT


def test_whatever_happens_only_what_died_alone_as_a_suspect_is_blocked() -> None:
    rng = random.Random(7)
    prints = [bytes([number]) for number in range(6)]
    for _ in range(200):
        suspects, expected = PoisonList(), dict.fromkeys(prints, "nothing")
        for _ in range(30):
            run = rng.sample(prints, rng.choice((1, 1, 2, 3)))
            if rng.random() < 0.5 and len(run) == 1:
                suspects.clear_suspect(run[0])
                expected[run[0]] = "blocked" if expected[run[0]] == "blocked" else "nothing"
                continue
            died(suspects, *run, alone=len(run) == 1)
            for each in run:
                is_blocked = expected[each] == "blocked" or (expected[each] == "suspect" and len(run) == 1)
                expected[each] = "blocked" if is_blocked else "suspect"
        assert {each: word(suspects, each) for each in prints} == expected
