"""Of several rounds the median is kept; a wrong answer in any round invalidates all."""

from __future__ import annotations

from row import Row, median


def rounds(*rates: float) -> list[Row]:
    return [Row("mosec", "small32", rate=rate, requests=int(rate)) for rate in rates]


def test_the_median_rate_is_kept_with_its_range() -> None:
    kept = median(rounds(30, 10, 20))
    assert (kept.rate, kept.lowest, kept.highest, kept.rounds, kept.trouble) == (20, 10, 30, 3, "")


def test_of_two_the_slower_is_kept() -> None:
    assert median(rounds(30, 10)).rate == 10


def test_a_round_that_failed_is_left_out_and_reported() -> None:
    rows = [*rounds(30, 10, 20), Row("mosec", "small32", trouble="it ended with 1")]
    kept = median(rows)
    assert kept.holds
    assert (kept.rate, kept.rounds, kept.trouble) == (20, 3, "1 of 4 rounds failed: it ended with 1")


def test_one_round_with_wrong_answers_invalidates_all() -> None:
    rows = rounds(30, 10, 20)
    rows[1].wrong, rows[1].trouble = 2, "wrong: 3 instead of 4"
    kept = median(rows)
    assert not kept.holds
    assert (kept.wrong, kept.trouble) == (2, "wrong: 3 instead of 4")


def test_without_any_result_the_reason_is_kept() -> None:
    kept = median([Row("mosec", "small32", trouble="it needs java")])
    assert not kept.holds
    assert kept.trouble == "it needs java"
