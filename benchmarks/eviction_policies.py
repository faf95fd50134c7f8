"""Compares what the server evicts with other policies on streams of requests, without a server.

    python benchmarks/eviction_policies.py [--models 200] [--fit 40] [--requests 15000] [--rate 50] [--seed 1]

Streams: those of density.py; `moving`, Zipf's law with ranks that are dealt anew four times; `sweeps`, Zipf's law with
a request to every model after each thousand. Loads take the same time, or 15 and 500 ms (a quarter of them). Shown
are the share of requests that found their model loaded, and the seconds that all loads took together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from model_streams import STREAMS, sequence
from replacement import belady_hits, lru_hits
from table import table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
from mmsup.supervisor.capacity.victims import Candidate, choose
from mmsup.supervisor.models.use_rate import UseRate

CLASS = 50
BYTES = 5 << 20
EQUAL_S = 0.1
CHEAP_S, DEAR_S = 0.015, 0.5


class Policy(Protocol):
    def ask(self, model: int, now_s: float) -> None: ...
    def victim(self, loaded: Sequence[int], now_s: float) -> int: ...


class Ours:
    """The function that the server calls, with all models of one size."""

    def __init__(self, load_s: Sequence[float]) -> None:
        self._load_s = load_s
        self._rates = [UseRate() for _ in load_s]
        self._last_s = [0.0 for _ in load_s]

    def ask(self, model: int, now_s: float) -> None:
        self._rates[model] = self._rates[model].used(now_s)
        self._last_s[model] = now_s

    def victim(self, loaded: Sequence[int], now_s: float) -> int:
        found = [
            Candidate(
                str(each), CLASS, BYTES, now_s - self._last_s[each], self._rates[each].at(now_s), self._load_s[each]
            )
            for each in loaded
        ]
        (chosen,) = choose(found, BYTES, CLASS)
        return int(chosen.name)


class GreedyDual:
    """GreedyDual-Size-Frequency with a clock that rises to the worth of what was evicted last (Cherkasova, 1998)."""

    def __init__(self, load_s: Sequence[float]) -> None:
        self._load_s = load_s
        self._counts = [0 for _ in load_s]
        self._worth = [0.0 for _ in load_s]
        self._clock = 0.0

    def ask(self, model: int, _now_s: float) -> None:
        self._counts[model] += 1
        self._worth[model] = self._clock + self._counts[model] * self._load_s[model]

    def victim(self, loaded: Sequence[int], _now_s: float) -> int:
        found = min(loaded, key=self._worth.__getitem__)
        self._clock, self._counts[found] = self._worth[found], 0
        return found


class LeastRecent:
    def __init__(self, load_s: Sequence[float]) -> None:
        self._last_s = [0.0 for _ in load_s]

    def ask(self, model: int, now_s: float) -> None:
        self._last_s[model] = now_s

    def victim(self, loaded: Sequence[int], _now_s: float) -> int:
        return min(loaded, key=self._last_s.__getitem__)


POLICIES: dict[str, Callable[[Sequence[float]], Policy]] = {
    "mmsup": Ours,
    "LRU": LeastRecent,
    "GDSF": GreedyDual,
}


def replay(
    asked: Sequence[int], fit: int, rate: float, load_s: Sequence[float], policy: Policy, counted_from: int = 0
) -> tuple[float, float]:
    """The share of hits, and the seconds of all loads. Requests before `counted_from` fill the memory."""
    loaded: dict[int, None] = {}
    hits, spent_s = 0, 0.0
    for place, model in enumerate(asked):
        now_s = place / rate
        policy.ask(model, now_s)
        if model in loaded:
            hits += place >= counted_from
            continue
        if len(loaded) >= fit:
            del loaded[policy.victim(list(loaded), now_s)]
        loaded[model] = None
        spent_s += load_s[model] if place >= counted_from else 0.0
    return hits / (len(asked) - counted_from), spent_s


def streams(models: int, count: int, seed: int) -> dict[str, list[int]]:
    found = {name: sequence(name, models, count, seed) for name in STREAMS}
    found["moving"] = [each for part in range(4) for each in sequence("zipf", models, count // 4, seed + 10 * part)]
    steps = range(0, count, 1000)
    found["sweeps"] = [each for at in steps for each in (*found["zipf"][at : at + 1000], *range(models))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--fit", type=int, default=40)
    parser.add_argument("--requests", type=int, default=15000)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    costs = {
        "equal": [EQUAL_S] * options.models,
        "mixed": [CHEAP_S if each % 4 else DEAR_S for each in range(options.models)],
    }
    lines = []
    for name, asked in streams(options.models, options.requests, options.seed).items():
        fill = len(asked) // 5
        for kind, load_s in costs.items():
            results = [
                replay(asked, options.fit, options.rate, load_s, make(load_s), fill) for make in POLICIES.values()
            ]
            best = belady_hits(asked, options.fit, fill) / (len(asked) - fill)
            assert abs(results[1][0] - lru_hits(asked, options.fit, fill) / (len(asked) - fill)) < 1e-9
            cells = [f"{hits:.3f} / {spent_s:.0f} s" for hits, spent_s in results]
            lines.append([name, kind, *cells, f"{best:.3f}"])
    print(table(["stream", "loads", *POLICIES, "Belady"], lines))


if __name__ == "__main__":
    main()
