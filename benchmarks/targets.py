"""Performance targets of mmsup, as ratios within one run, so that a slow or busy machine affects both sides. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from row import Row

OURS = "mmsup"
BASE = "base"
"""mmsup of another commit, in the same run (--base)."""
BARE = "bare"
"""The network of mlp without a server."""
NO_PEERS = OURS, BASE, BARE
BEST = "the best"
BEST_OIP = "the best of the Open Inference Protocol"
ITSELF = OURS
ABSOLUTE = ""
MORE_IS_BETTER = ("rate", "megabytes_s")


@dataclass(frozen=True)
class Target:
    """A figure of mmsup under one load must be at least, or at most, `bound` times a reference."""

    run: str
    figure: str
    """A field of Row. Rates must be at least the bound, times and costs at most."""
    bound: float
    against: str = BEST
    """BEST, BEST_OIP, the key of one server; ABSOLUTE if the bound is the figure itself."""
    run_of_reference: str = ""
    """If it is another load."""
    remark: str = ""

    @property
    def wants_more(self) -> bool:
        """Whether a larger figure is a better one."""
        return self.figure in MORE_IS_BETTER


TARGETS = (
    Target("small32", "cpu_us", 0.55, BASE),
    Target("small32", "cpu_us", 0.40, "mosec"),
    Target("small1", "cpu_us", 0.75, "mosec"),
    Target("small1", "p50_ms", 0.75, "mosec"),
    Target("json32", "rate", 4.0, remark="every server has its own JSON here"),
    Target("json32", "cpu_us", 0.25, BEST_OIP),
    Target("ids32", "cpu_us", 0.75, BASE),
    Target("tritonclient1", "cpu_us", 1.0, BASE),
    Target("requests1", "cpu_us", 1.0, BASE),
    Target("curl1", "cpu_us", 1.0, BASE),
    Target("mean1", "cpu_us", 1.0, BASE),
    Target("mean4", "cpu_us", 1.0, BASE),
    Target("double1", "cpu_us", 1.0, BASE),
    Target("double4", "cpu_us", 1.0, BASE),
    Target("mlp32", "rate", 1.25, "mosec"),
    Target("mlp32", "p99_ms", 1.0, "mosec"),
    Target("mlp1", "p50_ms", 1.15, BARE),
    Target("eight32", "rate", 3.0, "mosec"),
    Target("eight32", "rate", 0.85, ITSELF, "small32"),
)


@dataclass(frozen=True)
class Verdict:
    """The result of a target."""

    target: Target
    ours: float | None = None
    reference: float | None = None
    whose: str = ""
    """The key of the server that the reference is from."""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.ours is not None and self.reference else None

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.target.against == ABSOLUTE:
            return None if self.ours is None else self.ours <= self.target.bound
        if self.ratio is None:
            return None
        return self.ratio >= self.target.bound if self.target.wants_more else self.ratio <= self.target.bound


def judge(rows: Iterable[Row], oip: Collection[str], targets: Iterable[Target] = TARGETS) -> list[Verdict]:
    """Judge every target by the valid rows; `oip` are the servers whose JSON is the Open Inference Protocol's."""
    held = [row for row in rows if row.holds]
    return [_verdict(target, held, oip) for target in targets]


def _verdict(target: Target, rows: list[Row], oip: Collection[str]) -> Verdict:
    ours = next((_figure(row, target) for row in rows if (row.peer, row.run) == (OURS, target.run)), None)
    run = target.run_of_reference or target.run
    others = [row for row in rows if row.run == run and _is_reference(row.peer, target.against, oip)]
    if not others:
        return Verdict(target, ours)
    best = (max if target.wants_more else min)(others, key=lambda row: _figure(row, target))
    return Verdict(target, ours, _figure(best, target), best.peer)


def _is_reference(peer: str, against: str, oip: Collection[str]) -> bool:
    if against == BEST_OIP:
        return peer not in NO_PEERS and peer in oip
    return peer not in NO_PEERS if against == BEST else peer == against


def _figure(row: Row, target: Target) -> float:
    return float(getattr(row, target.figure))
