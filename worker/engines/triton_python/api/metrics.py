"""`pb_utils.MetricFamily` and its metrics: numbers that a model counts, inside its own process.

They can be set and read as in Triton. They are not in /metrics, which is said once in the model's output.
"""

from __future__ import annotations

import bisect
import enum
import logging
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException

log = logging.getLogger("mmsup.worker.model")
NOT_EXPORTED: Final = (
    "the metric '%s' is kept in the model's process alone: this version does not show a model's own metrics in /metrics"
)


class MetricKind(enum.IntEnum):
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class BackendMetric:
    """One series of a family; threads of the model may use it side by side."""

    def __init__(self, kind: MetricKind, labels: Mapping[str, str] | None, buckets: Sequence[float] | None) -> None:
        if (kind is MetricKind.HISTOGRAM) != (buckets is not None):
            raise TritonModelException("a histogram has buckets, and no other metric has")
        if buckets is not None and any(low >= high for low, high in pairwise(buckets)):
            raise TritonModelException("buckets of a histogram are in ascending order")
        self.labels = dict(labels or {})
        self._kind = kind
        self._bounds = list(buckets or ())
        self._counts = [0] * (len(self._bounds) + 1)
        self._value = 0.0
        self._lock = threading.Lock()

    def increment(self, value: float) -> None:
        if self._kind is MetricKind.HISTOGRAM or (self._kind is MetricKind.COUNTER and value < 0):
            raise TritonModelException("a counter is incremented by no negative number, and a histogram not at all")
        with self._lock:
            self._value += value

    def set(self, value: float) -> None:
        if self._kind is not MetricKind.GAUGE:
            raise TritonModelException("only a gauge is set")
        with self._lock:
            self._value = float(value)

    def observe(self, value: float) -> None:
        if self._kind is not MetricKind.HISTOGRAM:
            raise TritonModelException("only a histogram observes values")
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._value += value

    def value(self) -> float:
        if self._kind is MetricKind.HISTOGRAM:
            raise TritonModelException("a histogram has no single value")
        return self._value


class MetricFamily:
    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name = name
        self.description = description
        self._kind = MetricKind(kind)
        log.warning(NOT_EXPORTED, name)

    def Metric(  # noqa: N802 - its public name
        self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None
    ) -> BackendMetric:
        return BackendMetric(self._kind, labels, buckets)
