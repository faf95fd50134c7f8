"""Streams are the same for the same seed, and their shares are those that their names say."""

from __future__ import annotations

from collections import Counter

import pytest
from model_streams import STREAMS, arrivals_s, sequence, weights


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_is_the_same_for_the_same_seed_alone(stream: str) -> None:
    assert sequence(stream, 50, 200, 3) == sequence(stream, 50, 200, 3) != sequence(stream, 50, 200, 4)


def test_in_a_uniform_stream_every_model_is_asked_alike() -> None:
    counts = Counter(sequence("uniform", 20, 20_000, 1))
    assert len(counts) == 20
    assert min(counts.values()) > 800
    assert max(counts.values()) < 1200


def test_in_a_zipf_stream_the_first_is_asked_twice_as_often_as_the_second() -> None:
    shares = sorted(weights("zipf", 200, 1), reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(2)
    assert shares[0] / shares[199] == pytest.approx(200)
    counts = Counter(sequence("zipf", 200, 20_000, 1))
    assert counts.most_common(1)[0][1] / 20_000 == pytest.approx(shares[0], abs=0.02)


def test_the_most_asked_model_depends_on_the_seed() -> None:
    assert len({max(range(200), key=weights("zipf", 200, seed).__getitem__) for seed in range(8)}) > 4


def test_arrivals_come_at_the_rate_in_order_and_end_in_time() -> None:
    at_s = arrivals_s(50, 100, 1)
    assert len(at_s) == pytest.approx(5000, rel=0.06)
    assert at_s == sorted(at_s)
    assert at_s[0] >= 0
    assert at_s[-1] < 100
    assert at_s == arrivals_s(50, 100, 1)
    assert at_s != arrivals_s(50, 100, 2)
