"""Prometheus's text format, in pieces of a few lines each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(**values: str) -> str:
    """`{model="m",version="1"}`."""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()) + "}"


def family(kind: str, name: str, meaning: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    """A metric and the values of it, each with its `labels`. `kind`: `gauge`, or `counter`, whose name is the whole
    one."""
    yield _head(kind, name, meaning)
    for label, value in samples:
        yield f"{name}{label} {float(value)}\n"


def histogram(
    name: str, meaning: str, edges: Iterable[str], samples: Iterable[tuple[str, Iterable[int], float]]
) -> Iterator[str]:
    """A histogram. `edges`: upper bounds of its buckets, the last one `+Inf`. `samples`: `labels`, which must not be
    empty, how many values are in each bucket, and the sum of all values."""
    yield _head("histogram", name, meaning)
    ends = [f',le="{edge}"}} ' for edge in edges]
    for label, counts, total in samples:
        start, count, lines = f"{name}_bucket{label[:-1]}", 0, list[str]()
        for end, more in zip(ends, counts, strict=True):
            count += more
            lines.append(f"{start}{end}{float(count)}\n")
        yield f"{''.join(lines)}{name}_count{label} {float(count)}\n{name}_sum{label} {total}\n"


def _head(kind: str, name: str, meaning: str) -> str:
    return f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n"
