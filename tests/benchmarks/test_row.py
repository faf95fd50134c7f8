"""Of several rounds the medians are kept; a wrong answer in any round invalidates all."""

from __future__ import annotations

from row import Row, median


def rounds(*rates: float) -> list[Row]:
    return [Row("mosec", "small32", rate=rate, requests=int(rate)) for rate in rates]


def test_the_median_of_each_figure_is_kept_with_the_range_of_the_cpu_time() -> None:
    rows = rounds(30, 10, 20)
    for row, cpu_us, p50_ms in zip(rows, (5.0, 6.0, 4.0), (1.0, 3.0, 2.0), strict=True):
        row.cpu_us, row.p50_ms = cpu_us, p50_ms
    kept = median(rows)
    assert (kept.rate, kept.cpu_us, kept.p50_ms) == (20, 5.0, 2.0)
    assert (kept.lowest_us, kept.highest_us, kept.rounds, kept.trouble) == (4.0, 6.0, 3, "")


def test_a_share_that_some_rounds_do_not_know_is_that_of_the_others() -> None:
    rows = rounds(30, 10, 20)
    rows[1].known_share = 0.5
    assert median(rows).known_share == 0.5
    assert median(rounds(30, 10)).known_share is None


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
