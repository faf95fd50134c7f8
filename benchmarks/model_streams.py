"""Streams of requests to many models: which model is asked when. Pure; the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STREAMS = ("uniform", "zipf")
EXPONENT = 1.0
"""Of Zipf's law: the model of rank r is asked as often as 1/r."""


def weights(stream: str, models: int, seed: int) -> Sequence[float]:
    """The share of each model. Ranks of Zipf's law are dealt out by chance, so that no kind of model has the first."""
    if stream == "uniform":
        return [1 / models] * models
    ranks = np.random.default_rng(seed).permutation(models) + 1.0
    shares = ranks**-EXPONENT
    return list(shares / shares.sum())


def sequence(stream: str, models: int, count: int, seed: int) -> list[int]:
    """The models of `count` requests, one after the other."""
    draw = np.random.default_rng((seed, STREAMS.index(stream)))
    return [int(each) for each in draw.choice(models, size=count, p=weights(stream, models, seed))]


def arrivals_s(rate: float, run_s: float, seed: int) -> list[float]:
    """When requests come, in seconds from the start: independently of each other (a Poisson process)."""
    draw = np.random.default_rng((seed, 7))
    count = int(rate * run_s * 1.2 + 50)
    while True:
        at_s = draw.exponential(1 / rate, count).cumsum()
        if at_s[-1] >= run_s:
            return [float(each) for each in at_s[at_s < run_s]]
        count *= 2
