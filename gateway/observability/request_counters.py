"""Counts the outcome of each request, once, in this gateway's table of shared counters; totals sum over all gateways.

Rows are (model, version), (model, `~`) for current values, and (model, `~cold`) for loads from sleep: `success` counts
these, `open` the requests that wait for one now, and the histogram the times that requests have waited. A model also
has a row `!CODE` for each error code with which requests were refused before they counted as inferences. Requests for
unknown models share the model `_unknown`, because clients choose those names.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from mmsup.gateway.observability.response_counters import ResponseCounters
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.memory.counters import (
    BATCH_FIELDS,
    BUCKETS,
    BUCKETS_S,
    FIELDS,
    INDEX,
    BatchCounter,
    CounterRow,
    CounterTable,
)
from mmsup.ipc.messages.data import InferReply

UNKNOWN_MODEL: Final = "_unknown"
REFUSED_PREFIX: Final = "!"
CURRENT: Final = "~"
COLD: Final = "~cold"
GATEWAY_ROW: Final = "_gateway"
"""The row of what belongs to no model."""
_UNKNOWN_MODEL_CODES: Final = frozenset({"unknown_model", "unknown_version", "bad_version"})
REASONS: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
_REASON: Final = {
    "cancelled": "CANCELED",
    "queue_full": "REJECTED",
    "no_buffer": "REJECTED",
    "inference_failed": "BACKEND",
    "worker_crashed": "BACKEND",
    "worker_oom": "BACKEND",
    "worker_sigbus": "BACKEND",
    "worker_hung": "BACKEND",
    "bad_worker_reply": "BACKEND",
    "gpu_oom": "BACKEND",
    "gpu_fault": "BACKEND",
    "sequence_lost": "BACKEND",
    "deadline_exceeded": "BACKEND",
}
_EDGES_NS: Final = [round(edge * 1e9) for edge in BUCKETS_S]
_WHOLE: Final = 1 - 1e-9
_log: Final = logging.getLogger("mmsup.gateway")
Totals = dict[tuple[str, str], dict[str, int]]
BatchTotals = dict[tuple[str, str], dict[int, dict[str, int]]]
"""By model version and size of batch."""


def failure_reason(code: str) -> str:
    """The `reason` of an error code in the public metric."""
    return _REASON.get(code, "OTHER")


def error_code(error: BaseException) -> str:
    """The code under which an exception that ended a request is counted."""
    if isinstance(error, MmsupError):
        return error.code
    return "internal" if isinstance(error, Exception) else "cancelled"


class RequestCounters:
    """One per gateway process. `seat`: the index of its own table."""

    def __init__(self, tables: Sequence[CounterTable], seat: int) -> None:
        self._tables = tables
        self._own_table = tables[seat]
        self.models: Container[str] | None = None
        """Those that there are: no row is taken for other names, which clients make up. None: any."""
        # What an earlier process of this seat left.
        self._models_with_open = {model for model, version in self._own_table.row_keys() if version == CURRENT}
        self._models_with_waiting = {model for model, version in self._own_table.row_keys() if version == COLD}
        own = self._own_table.row_keys()
        self._versions_with_pending = {key for key in own if not key[1].startswith((CURRENT, REFUSED_PREFIX))}
        self.by_version: dict[tuple[str, str], VersionCounters] = {}
        """By model and version."""

    def version_counters(self, model: str, version: str) -> VersionCounters:
        key = model, version
        if key not in self.by_version:
            self.by_version[key] = VersionCounters(
                self._own_table.row(model, version), partial(self._own_table.batch, model, version)
            )
        return self.by_version[key]

    def responses(self, model: str, version: str) -> ResponseCounters:
        """Of a version whose requests are answered many times."""
        return ResponseCounters(partial(self._own_table.row, model), version)

    def record_failure(self, model: str, version: str, code: str, request_ns: int) -> None:
        """Count an inference that was answered with an error that is not the caller's."""
        row = self._own_table.row(model, version)
        row.add(f"fail_{failure_reason(code)}")
        row.add("fail_ns", request_ns)
        row.add(f"bucket_{bisect_left(_EDGES_NS, request_ns)}")

    def record_refusal(self, model: str, code: str) -> None:
        """Count an invalid request, which is no inference."""
        name = model if self.has(model) and code not in _UNKNOWN_MODEL_CODES else UNKNOWN_MODEL
        self._own_table.row(name, REFUSED_PREFIX + code).add("refused")

    def has(self, model: str) -> bool:
        """Whether there is such a model."""
        return bool(model) and (self.models is None or model in self.models)

    def set_front_fallback(self, is_fallback: bool) -> None:
        """Whether this gateway serves without the fast path, because that failed its self-test."""
        self._own_table.row(GATEWAY_ROW, CURRENT).set("front_fallback", int(is_fallback))

    def record_cold_start(self, model: str) -> None:
        """Count a load from sleep that a request of this gateway was the first to ask for."""
        self._own_table.row(model, COLD).add("success")

    def record_cold_wait(self, model: str, waited_ns: int) -> None:
        """Count a request that has waited for its model to be loaded from sleep, whatever became of it."""
        row = self._own_table.row(model, COLD)
        row.add("request_ns", waited_ns)
        row.add(f"bucket_{bisect_left(_EDGES_NS, waited_ns)}")

    def set_waiting(self, waiting: Mapping[str, int]) -> None:
        """Set how many requests wait for loads from sleep now; called at every heartbeat."""
        for name in self._models_with_waiting - waiting.keys():
            self._own_table.row(name, COLD).set("open", 0)
        for name, count in waiting.items():
            self._own_table.row(name, COLD).set("open", count)
        self._models_with_waiting = set(waiting)

    def set_pending(self, pending: Mapping[tuple[str, str], int]) -> None:
        """Set how many requests wait to be executed, by model and version; called at every heartbeat."""
        for key in self._versions_with_pending - pending.keys():
            self._own_table.row(*key).set("open", 0)
        for key, count in pending.items():
            self._own_table.row(*key).set("open", count)
        self._versions_with_pending = set(pending)

    def set_current(self, open_requests: Mapping[str, int], used_bytes: int, held_bytes: int) -> None:
        """Set the current values of this gateway; called at every heartbeat."""
        for name in self._models_with_open - open_requests.keys():
            self._own_table.row(name, CURRENT).set("open", 0)
        for name, count in open_requests.items():
            self._own_table.row(name, CURRENT).set("open", count)
        self._models_with_open = set(open_requests)
        gateway = self._own_table.row(GATEWAY_ROW, CURRENT)
        gateway.set("arena_used_bytes", used_bytes)
        gateway.set("arena_held_bytes", held_bytes)

    def rows(self, model: str = "") -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
        """The totals of all gateways one by one, by model and version: of one model, or of all."""
        for key in dict.fromkeys(key for table in self._tables for key in table.row_keys() if model in ("", key[0])):
            counted = [values for table in self._tables if (values := table.values(key)) is not None]
            row = dict(zip(FIELDS, map(sum, zip(*counted, strict=True)), strict=True))
            row["last_inference_ms"] = max(values[INDEX["last_inference_ms"]] for values in counted)
            yield key, row

    def totals(self) -> Totals:
        return dict(self.rows())

    def batch_totals(self) -> BatchTotals:
        summed: BatchTotals = {}
        for table in self._tables:
            for key, sizes in table.batch_totals().items():
                for size, values in sizes.items():
                    batch = summed.setdefault(key, {}).setdefault(size, dict.fromkeys(BATCH_FIELDS, 0))
                    for name, value in zip(BATCH_FIELDS, values, strict=True):
                        batch[name] += value
        return summed


@dataclass(slots=True, eq=False)
class _Executions:
    """Of batches of one size."""

    counter: BatchCounter | None
    fraction: float = 0.0
    """Each of the n requests of a batch counts as 1/n of an execution; this is what is short of a whole one."""

    def count(self, batch: int) -> int:
        """Count one of `batch` requests; 1 if that completes an execution."""
        if batch <= 1:
            return 1
        self.fraction += 1 / batch
        whole = 1 if self.fraction >= _WHOLE else 0
        self.fraction -= whole
        return whole


class _KnownRequest(Protocol):
    @property
    def inferences(self) -> int: ...


class _KnownInFlight(Protocol):
    started_ns: int

    @property
    def known(self) -> _KnownRequest: ...


_KnownReply = tuple[_KnownInFlight, tuple[int, int, int, int, int, int], Any]
"""With its queue, input, infer and output times, the size of its batch, and the rows of that."""


class VersionCounters:
    __slots__ = ("_by_size", "_find_counter", "_other_sizes", "_row")

    def __init__(self, row: CounterRow, find_counter: Callable[[int], BatchCounter | None]) -> None:
        """`find_counter`: of the batches of a size, None if there are too many sizes to count them by size."""
        self._row = row
        self._find_counter = find_counter
        self._by_size: dict[int, _Executions] = {}
        self._other_sizes = _Executions(None)

    def record_success(self, reply: InferReply, inferences: int, request_ns: int) -> None:
        executions = self._by_size.get(reply.rows) or self._executions(reply.rows)
        whole = executions.count(reply.batch)
        times_ns = request_ns, reply.queue_ns, reply.input_ns, reply.infer_ns, reply.output_ns
        if sum(times_ns) > 2 * request_ns:  # a worker's own account of it, which is not longer if it is true
            times_ns = request_ns, 0, 0, 0, 0
        if whole and executions.counter is not None:
            executions.counter.add(times_ns)
        bucket = bisect_left(_EDGES_NS, request_ns)
        self._row.add_success(inferences, whole, times_ns, bucket, time.time_ns() // 1_000_000)

    def record_cache_hit(self, took_ns: int, request_ns: int) -> None:
        """Count a request that was answered from the response cache, which took so long to look up: a success that
        was no inference."""
        row = self._row
        row.add("cache_hit")
        row.add("cache_hit_ns", took_ns)
        row.add_success(0, 0, (request_ns, took_ns, 0, 0, 0), bisect_left(_EDGES_NS, request_ns), _now_ms())

    def record_cache_miss(self, took_ns: int) -> None:
        """Count a request that was looked up there in vain; `took_ns`: with the time to keep its result."""
        self._row.add("cache_miss")
        self._row.add("cache_miss_ns", took_ns)

    def record_known(self, replies: Sequence[_KnownReply], now_ns: int) -> int:
        """The same for some replies to known requests, answered at once. Returns the current time, in milliseconds
        since 1970."""
        own = self._row.own
        inferences = all_ns = queue_ns = input_ns = infer_ns = output_ns = 0
        are_single, size = True, replies[0][1][5]
        for request, (queued, gathered, inferred, copied, batch, rows), _ in replies:
            request_ns = now_ns - request.started_ns
            own[BUCKETS + bisect_left(_EDGES_NS, request_ns)] += 1
            all_ns += request_ns
            inferences += request.known.inferences
            if batch > 1 or rows != size:
                are_single = False
            if queued + gathered + inferred + copied <= request_ns:  # as above
                queue_ns += queued
                input_ns += gathered
                infer_ns += inferred
                output_ns += copied
        if are_single:
            whole = len(replies)
            counter = (self._by_size.get(size) or self._executions(size)).counter
            if counter is not None:
                counter.add_sums(whole, input_ns, infer_ns, output_ns)
        else:
            whole = self._count_batches(replies, now_ns)
        sums = inferences, whole, all_ns, queue_ns, input_ns, infer_ns, output_ns
        now_ms = time.time_ns() // 1_000_000
        self._row.add_known(len(replies), sums, now_ms)
        return now_ms

    def _count_batches(self, replies: Sequence[_KnownReply], now_ns: int) -> int:
        """Count the batches that these requests complete, by size; how many these are."""
        whole = 0
        for request, (queued, *times_ns, batch, rows), _ in replies:
            executions = self._by_size.get(rows) or self._executions(rows)
            if executions.count(batch):
                whole += 1
                is_true = queued + sum(times_ns) <= now_ns - request.started_ns
                if executions.counter is not None:
                    executions.counter.add_sums(1, *(times_ns if is_true else (0, 0, 0)))
        return whole

    def _executions(self, size: int) -> _Executions:
        counter = self._find_counter(size)
        if counter is None:
            return self._other_sizes
        known = self._by_size[size] = _Executions(counter)
        return known


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True, eq=False)
class RequestTimer:
    """Times one request and counts its outcome; the first outcome holds."""

    _counters: RequestCounters
    model: str
    """Empty while it is not known."""
    version: str
    """The requested version, then the one that serves the request."""
    started_ns: int = field(default_factory=time.monotonic_ns)
    _is_running: bool = True

    def finish(self, reply: InferReply, inferences: int) -> None:
        if self._is_running:
            self._is_running = False
            request_ns = time.monotonic_ns() - self.started_ns
            counters, key = self._counters, (self.model, self.version)
            version_counters = counters.by_version.get(key) or counters.version_counters(*key)
            if reply.batch:
                version_counters.record_success(reply, inferences, request_ns)
            else:
                version_counters.record_cache_hit(reply.queue_ns, request_ns)

    def responses(self) -> ResponseCounters:
        return self._counters.responses(self.model, self.version)

    def fail(self, error: BaseException) -> None:
        if not self._is_running:
            return
        self._is_running = False
        if _log.isEnabledFor(logging.DEBUG):
            code = error.code if isinstance(error, MmsupError) else type(error).__name__
            place = f"{self.model}/{self.version}" if self.version else self.model
            _log.debug("a request to model %.192s failed: %s: %s", place, code, error)
        code = error_code(error)
        if isinstance(error, CallerError) or not self._counters.has(self.model):
            self._counters.record_refusal(self.model, code)
            return
        self._counters.record_failure(self.model, self.version, code, time.monotonic_ns() - self.started_ns)
