"""What a run of density.py has shown: the figures of each stream, and tables of them. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from density_client import Reply
from memory_curve import MemorySample
from replacement import belady_hits, lru_hits, random_hits
from table import figure, table

MIB = 1 << 20
MOST_TIMES_OWN_START = 3.0
SHOWN_FAULTS = 20


@dataclass(frozen=True)
class HitRates:
    """Shares of a stream's requests that found their model loaded."""

    fitting: int
    """How many models were loaded at a time (the median of the samples), which is what the policies below are given."""
    server: float
    lru: float
    belady: float
    chance: float


@dataclass(frozen=True)
class KindResult:
    """Cold replies of one kind of model in one stream. `own_`: divided by the start of the same model alone."""

    kind: str
    cold: int
    alone_p50_s: float
    cold_p50_s: float
    cold_p99_s: float
    own_p50: float
    own_p99: float


@dataclass(frozen=True)
class StreamResult:
    """One stream; times in seconds, memory in bytes."""

    stream: str
    closed_rate: float
    rate: float
    requests: int
    faults: list[str]
    cold: int
    """Replies that waited for their model."""
    loads: int
    cold_p50_s: float
    cold_p99_s: float
    own_p50: float
    """Of cold replies: their time divided by that of the same model alone."""
    own_p99: float
    warm_p50_s: float
    warm_p99_s: float
    hits: HitRates
    counted_peak: int
    whole_peak: int
    kinds: list[KindResult] = field(default_factory=list[KindResult])
    stages: str = ""
    """Where the time of cold starts went, as a table."""
    processors: str = ""
    """The same of processor time."""


@dataclass(frozen=True)
class Density:
    """What a run has measured."""

    facts: dict[str, str]
    """Of the machine and the run."""
    budget: int
    faults: list[str]
    """Before the streams."""
    streams: list[StreamResult]
    samples: list[MemorySample]
    spans: dict[str, tuple[float, float]]
    """From when to when each stream ran."""
    alone_stages: str = ""
    """Where the time of starts alone goes, as a table."""


def quantile(values: Sequence[float], share: float) -> float:
    """NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else math.nan


def loads(replies: Sequence[Reply]) -> int:
    """How often a model was loaded: cold replies of one model whose waits overlap have waited for the same load."""
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for reply in replies:
        if reply.is_cold:
            spans[reply.model].append((reply.due_s, reply.due_s + reply.took_s))
    return sum(_separate(sorted(found)) for found in spans.values())


def _separate(spans: Sequence[tuple[float, float]]) -> int:
    """How many groups of overlapping spans there are, of spans in order."""
    count, end_s = 0, -math.inf
    for begin_s, until_s in spans:
        count += begin_s > end_s
        end_s = max(end_s, until_s)
    return count


def hit_rates(before: Sequence[int], replies: Sequence[Reply], fitting: int) -> HitRates:
    """Of a stream, after the requests `before` it, which have filled the memory."""
    asked = [*before, *(reply.model for reply in replies)]
    policies = (lru_hits, belady_hits, random_hits)
    lru, belady, chance = (policy(asked, max(fitting, 1), len(before)) / len(replies) for policy in policies)
    return HitRates(fitting, 1 - loads(replies) / len(replies), lru, belady, chance)


@dataclass(frozen=True)
class StreamRun:
    """What was seen of one stream."""

    stream: str
    closed_rate: float
    rate: float
    before: Sequence[int]
    """Models of all requests before it."""
    replies: Sequence[Reply]
    faults: list[str]
    samples: Sequence[MemorySample]
    kinds: Sequence[str] = ()
    """Of each model."""
    stages: str = ""
    processors: str = ""


def kind_results(run: StreamRun, own_start_s: Mapping[int, float]) -> list[KindResult]:
    found = []
    cold = [each for each in run.replies if each.is_cold and each.status == 200 and each.model in own_start_s]
    for kind in sorted(set(run.kinds)):
        times = [(each.took_s, own_start_s[each.model]) for each in cold if run.kinds[each.model] == kind]
        took, ratios = [each for each, _ in times], [each / own for each, own in times]
        alone = [own_s for model, own_s in own_start_s.items() if run.kinds[model] == kind]
        values = quantile(alone, 0.5), quantile(took, 0.5), quantile(took, 0.99)
        found.append(KindResult(kind, len(times), *values, quantile(ratios, 0.5), quantile(ratios, 0.99)))
    return found


def result(run: StreamRun, own_start_s: Mapping[int, float]) -> StreamResult:
    """The figures of one stream. `own_start_s`: of each model, how long a request alone waited for its start."""
    answered = [reply for reply in run.replies if reply.status == 200]
    cold = [reply.took_s for reply in answered if reply.is_cold]
    warm = [reply.took_s for reply in answered if not reply.is_cold]
    ratios = [reply.took_s / own_start_s[reply.model] for reply in answered if reply.is_cold and own_start_s]
    fitting = round(median([each.workers for each in run.samples] or [1]))
    return StreamResult(
        run.stream,
        run.closed_rate,
        run.rate,
        len(run.replies),
        run.faults,
        len(cold),
        loads(run.replies),
        quantile(cold, 0.5),
        quantile(cold, 0.99),
        quantile(ratios, 0.5),
        quantile(ratios, 0.99),
        quantile(warm, 0.5),
        quantile(warm, 0.99),
        hit_rates(run.before, run.replies, fitting),
        max((each.counted for each in run.samples), default=0),
        max((each.counted + each.files for each in run.samples), default=0),
        kind_results(run, own_start_s),
        run.stages,
        run.processors,
    )


def _ms(value_s: float) -> str:
    return "-" if math.isnan(value_s) else figure(value_s * 1e3)


def _plain(value: float) -> str:
    return "-" if math.isnan(value) else figure(value)


def stream_table(results: Sequence[StreamResult]) -> str:
    heads = ["stream", "closed loop, /s", "sent, /s", "requests", "failed", "loads", "cold replies", "cold p50, ms"]
    heads += ["cold p99, ms", "÷ own start, p50", "p99", "warm p50, ms", "warm p99, ms"]
    return table(heads, [_stream_line(each) for each in results])


def _stream_line(found: StreamResult) -> list[str]:
    counts = found.requests, len(found.faults), found.loads, found.cold
    cold = _ms(found.cold_p50_s), _ms(found.cold_p99_s), _plain(found.own_p50), _plain(found.own_p99)
    rates = figure(found.closed_rate), figure(found.rate)
    warm = _ms(found.warm_p50_s), _ms(found.warm_p99_s)
    return [found.stream, *rates, *(f"{each:,}" for each in counts), *cold, *warm]


def hit_table(results: Sequence[StreamResult]) -> str:
    heads = ["stream", "models loaded at a time", "mmsup", "ideal LRU", "Belady's optimum", "by chance"]
    rates = [(each.stream, each.hits) for each in results]
    shares = [(name, hits.fitting, (hits.server, hits.lru, hits.belady, hits.chance)) for name, hits in rates]
    return table(heads, [[name, str(fit), *(f"{each:.1%}" for each in found)] for name, fit, found in shares])


def memory_table(results: Sequence[StreamResult], budget: int) -> str:
    heads = ["stream", "budget, MiB", "peak of what it counts, MiB", "with files, MiB"]
    mib = [(each.stream, budget / MIB, each.counted_peak / MIB, each.whole_peak / MIB) for each in results]
    return table(heads, [[name, *map(figure, values)] for name, *values in mib])


def kind_table(results: Sequence[StreamResult]) -> str:
    """Of each stream and kind of model: its cold replies beside its start alone."""
    heads = ["stream, kind", "cold replies", "alone p50, ms", "cold p50, ms", "cold p99, ms", "÷ own start, p50", "p99"]
    lines = []
    for stream in results:
        for each in stream.kinds:
            times = _ms(each.alone_p50_s), _ms(each.cold_p50_s), _ms(each.cold_p99_s)
            ratios = _plain(each.own_p50), _plain(each.own_p99)
            lines.append([f"{stream.stream}, {each.kind}", f"{each.cold:,}", *times, *ratios])
    return table(heads, lines)


def target_table(results: Sequence[StreamResult], budget: int) -> str:
    lines = []
    for each in results:
        facts = [
            ("failed", len(each.faults), 0),
            ("cold p99 ÷ own start", each.own_p99, MOST_TIMES_OWN_START),
            ("peak ÷ budget", each.counted_peak / budget if budget else math.nan, 1.0),
        ]
        lines += [
            [f"{each.stream}: {name}", _plain(found), f"≤ {figure(most)}", "yes" if found <= most else "no"]
            for name, found, most in facts
            if not math.isnan(found)
        ]
    return table(["figure", "measured", "wanted", "met"], lines)


def report(density: Density) -> str:
    """Markdown."""
    results, budget = density.streams, density.budget
    parts = ["\n".join(f"- {name}: {value}" for name, value in density.facts.items())]
    parts += [stream_table(results), hit_table(results), memory_table(results, budget)]
    parts += [kind_table(results), target_table(results, budget)]
    parts += [f"alone: {density.alone_stages}"] if density.alone_stages else []
    parts += [f"{each.stream}: {each.stages}\n\n{each.processors}" for each in results if each.stages]
    faults = density.faults + [fault for each in results for fault in each.faults]
    if faults:
        parts.append("Failed:\n\n" + "\n".join(f"- {fault}" for fault in faults[:SHOWN_FAULTS]))
    return "\n\n".join(parts) + "\n"
