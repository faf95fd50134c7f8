"""The concurrency estimate: how many requests are likely to come together."""

from __future__ import annotations

from mmsup.worker.batching.batch_policy import WINDOW_BATCHES, ConcurrencyEstimate


def test_no_request_is_expected_before_the_first_batch() -> None:
    assert ConcurrencyEstimate().expected == 0


def test_the_largest_number_in_the_window_is_expected_and_then_forgotten() -> None:
    estimate = ConcurrencyEstimate()
    estimate.record(5)
    for _ in range(WINDOW_BATCHES - 1):
        estimate.record(1)
        assert estimate.expected == 5
    estimate.record(1)
    assert estimate.expected == 1


def test_after_a_wait_in_vain_the_estimate_starts_anew() -> None:
    estimate = ConcurrencyEstimate()
    estimate.record(5)
    estimate.reset()
    estimate.record(2)
    assert estimate.expected == 2
