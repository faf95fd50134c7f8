"""What became of each request, written once into this gateway's tally, read as the sum over all gateways.

Rows are (model, version), and (model, `~`) for what is true now. Beside them a model has a row `!CODE` for each code
with which requests were refused before they were inferences; requests that name no model of ours share the model
`_unknown`, since a client chooses those names.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final

from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.memory.counters import BUCKETS_S, FIELDS, CounterRow, CounterTable
from mmsup.ipc.messages.data import InferReply

UNKNOWN_MODEL: Final = "_unknown"
REFUSED_PREFIX: Final = "!"
CURRENT: Final = "~"
GATEWAY_ROW: Final = "_gateway"
"""The row for what belongs to no model."""
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
    "deadline_exceeded": "BACKEND",
}
_EDGES_NS: Final = [round(edge * 1e9) for edge in BUCKETS_S]
_WHOLE: Final = 1 - 1e-9
_CANCELLED: Final = ServerError("cancelled", "the client went away")
_BUG: Final = ServerError("internal", "an error of ours")
RequestTimings = InferenceResult | InferReply
"""Both say how long each part took, and how many requests ran together."""
Totals = dict[tuple[str, str], dict[str, int]]


def failure_reason(code: str) -> str:
    """The failure reason of a code, in the words of the public metric."""
    return _REASON.get(code, "OTHER")


class RequestCounters:
    """One per gateway process; `place` is its own tally's."""

    def __init__(self, tallies: Sequence[CounterTable], place: int) -> None:
        self._tables = tallies
        self._own_table = tallies[place]
        self._models_with_open = {
            model for model, version in self._own_table.totals() if version == CURRENT
        }  # a predecessor's last words
        self.by_version: dict[tuple[str, str], VersionCounters] = {}
        """By model and version."""

    def version_counters(self, model: str, version: str) -> VersionCounters:
        """What a model version has answered with results."""
        key = model, version
        if key not in self.by_version:
            self.by_version[key] = VersionCounters(self._own_table.row(model, version))
        return self.by_version[key]

    def record_failure(self, model: str, version: str, code: str, request_ns: int) -> None:
        """An inference was answered with an error that is not its caller's."""
        row = self._own_table.row(model, version)
        row.add(f"fail_{failure_reason(code)}")
        row.add("fail_ns", request_ns)
        row.add(f"bucket_{bisect_left(_EDGES_NS, request_ns)}")

    def record_refusal(self, model: str, code: str) -> None:
        """A request was wrong in itself; it is no inference."""
        self._own_table.row(UNKNOWN_MODEL if code in _UNKNOWN_MODEL_CODES else model, REFUSED_PREFIX + code).add(
            "refused"
        )

    def set_front_fallback(self, is_so: bool) -> None:
        """Whether this gateway serves without its fast front, because that failed its own test."""
        self._own_table.row(GATEWAY_ROW, CURRENT).set("front_fallback", int(is_so))

    def set_current(self, open_requests: Mapping[str, int], used_bytes: int, held_bytes: int) -> None:
        """What is true of this gateway now; said at every beat."""
        for name in self._models_with_open - open_requests.keys():
            self._own_table.row(name, CURRENT).set("open", 0)
        for name, count in open_requests.items():
            self._own_table.row(name, CURRENT).set("open", count)
        self._models_with_open = set(open_requests)
        house = self._own_table.row(GATEWAY_ROW, CURRENT)
        house.set("arena_used_bytes", used_bytes)
        house.set("arena_held_bytes", held_bytes)

    def totals(self) -> Totals:
        """All rows, summed over all gateways."""
        summed: Totals = {}
        for tally in self._tables:
            for key, values in tally.totals().items():
                row = summed.setdefault(key, dict.fromkeys(FIELDS, 0))
                for name, value in zip(FIELDS, values, strict=True):
                    row[name] = max(row[name], value) if name == "last_inference_ms" else row[name] + value
        return summed


class VersionCounters:
    """What one model version has answered with results."""

    __slots__ = ("_batch_fraction", "_row")

    def __init__(self, row: CounterRow) -> None:
        self._row = row
        self._batch_fraction = 0.0
        """Of a batch that is not yet whole: each of the n requests of a batch is a 1/n of one."""

    def record_success(self, times: RequestTimings, inferences: int, request_ns: int) -> None:
        """One more."""
        whole = 1
        if times.batch > 1:
            self._batch_fraction += 1 / times.batch
            whole = 1 if self._batch_fraction >= _WHOLE else 0
            self._batch_fraction -= whole
        times_ns = request_ns, times.queue_ns, times.input_ns, times.infer_ns, times.output_ns
        bucket = bisect_left(_EDGES_NS, request_ns)
        self._row.add_success(inferences, whole, times_ns, bucket, time.time_ns() // 1_000_000)


class RequestTimer:
    """One request on its way to being counted: the first word on its end holds."""

    __slots__ = ("_counters", "_is_running", "_model", "_version", "started_ns")

    def __init__(self, counting: RequestCounters, model: str, version: str) -> None:
        self._counters = counting
        self._model = model
        self._version = version
        self._is_running = True
        self.started_ns = time.monotonic_ns()

    def set_version(self, version: str) -> None:
        """The version that was found for it."""
        self._version = version

    def finish(self, times: RequestTimings, inferences: int) -> None:
        """It has its result."""
        if self._is_running:
            self._is_running = False
            request_ns = time.monotonic_ns() - self.started_ns
            counting, key = self._counters, (self._model, self._version)
            account = counting.by_version.get(key) or counting.version_counters(*key)
            account.record_success(times, inferences, request_ns)

    def fail(self, error: BaseException) -> None:
        """It ended with this instead."""
        if not self._stop():
            return
        if isinstance(error, CallerError):
            self._counters.record_refusal(self._model, error.code)
            return
        known = error if isinstance(error, MmsupError) else _BUG if isinstance(error, Exception) else _CANCELLED
        self._counters.record_failure(self._model, self._version, known.code, self._age_ns())

    def _stop(self) -> bool:
        was_open, self._is_running = self._is_running, False
        return was_open

    def _age_ns(self) -> int:
        return time.monotonic_ns() - self.started_ns
