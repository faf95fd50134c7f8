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

from mmsup.gateway.protocol.inference_job import Outcome
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.memory.counters import BUCKETS_S, FIELDS, Row, Tally
from mmsup.ipc.messages.data import Reply

UNKNOWN: Final = "_unknown"
REFUSED: Final = "!"
NOW: Final = "~"
HOUSE: Final = "_gateway"
"""The row for what belongs to no model."""
_STRANGERS: Final = frozenset({"unknown_model", "unknown_version", "bad_version"})
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
Times = Outcome | Reply
"""Both say how long each part took, and how many requests ran together."""
Totals = dict[tuple[str, str], dict[str, int]]


def reason(code: str) -> str:
    """The failure reason of a code, in the words of the public metric."""
    return _REASON.get(code, "OTHER")


class Counting:
    """One per gateway process; `place` is its own tally's."""

    def __init__(self, tallies: Sequence[Tally], place: int) -> None:
        self._tallies = tallies
        self._own = tallies[place]
        self._busy = {model for model, version in self._own.totals() if version == NOW}  # a predecessor's last words
        self.accounts: dict[tuple[str, str], Account] = {}
        """By model and version."""

    def account(self, model: str, version: str) -> Account:
        """What a model version has answered with results."""
        key = model, version
        if key not in self.accounts:
            self.accounts[key] = Account(self._own.row(model, version))
        return self.accounts[key]

    def failed(self, model: str, version: str, code: str, request_ns: int) -> None:
        """An inference was answered with an error that is not its caller's."""
        row = self._own.row(model, version)
        row.add(f"fail_{reason(code)}")
        row.add("fail_ns", request_ns)
        row.add(f"bucket_{bisect_left(_EDGES_NS, request_ns)}")

    def refused(self, model: str, code: str) -> None:
        """A request was wrong in itself; it is no inference."""
        self._own.row(UNKNOWN if code in _STRANGERS else model, REFUSED + code).add("refused")

    def fallback(self, is_so: bool) -> None:
        """Whether this gateway serves without its fast front, because that failed its own test."""
        self._own.row(HOUSE, NOW).put("front_fallback", int(is_so))

    def present(self, open_requests: Mapping[str, int], used_bytes: int, held_bytes: int) -> None:
        """What is true of this gateway now; said at every beat."""
        for name in self._busy - open_requests.keys():
            self._own.row(name, NOW).put("open", 0)
        for name, count in open_requests.items():
            self._own.row(name, NOW).put("open", count)
        self._busy = set(open_requests)
        house = self._own.row(HOUSE, NOW)
        house.put("arena_used_bytes", used_bytes)
        house.put("arena_held_bytes", held_bytes)

    def totals(self) -> Totals:
        """All rows, summed over all gateways."""
        summed: Totals = {}
        for tally in self._tallies:
            for key, values in tally.totals().items():
                row = summed.setdefault(key, dict.fromkeys(FIELDS, 0))
                for name, value in zip(FIELDS, values, strict=True):
                    row[name] = max(row[name], value) if name == "last_inference_ms" else row[name] + value
        return summed


class Account:
    """What one model version has answered with results."""

    __slots__ = ("_part", "_row")

    def __init__(self, row: Row) -> None:
        self._row = row
        self._part = 0.0
        """Of a batch that is not yet whole: each of the n requests of a batch is a 1/n of one."""

    def finished(self, times: Times, inferences: int, request_ns: int) -> None:
        """One more."""
        whole = 1
        if times.batch > 1:
            self._part += 1 / times.batch
            whole = 1 if self._part >= _WHOLE else 0
            self._part -= whole
        times_ns = request_ns, times.queue_ns, times.input_ns, times.infer_ns, times.output_ns
        bucket = bisect_left(_EDGES_NS, request_ns)
        self._row.succeeded(inferences, whole, times_ns, bucket, time.time_ns() // 1_000_000)


class Ticket:
    """One request on its way to being counted: the first word on its end holds."""

    __slots__ = ("_counting", "_model", "_open", "_version", "started_ns")

    def __init__(self, counting: Counting, model: str, version: str) -> None:
        self._counting = counting
        self._model = model
        self._version = version
        self._open = True
        self.started_ns = time.monotonic_ns()

    def serves(self, version: str) -> None:
        """The version that was found for it."""
        self._version = version

    def finished(self, times: Times, inferences: int) -> None:
        """It has its result."""
        if self._open:
            self._open = False
            request_ns = time.monotonic_ns() - self.started_ns
            counting, key = self._counting, (self._model, self._version)
            account = counting.accounts.get(key) or counting.account(*key)
            account.finished(times, inferences, request_ns)

    def failed(self, error: BaseException) -> None:
        """It ended with this instead."""
        if not self._close():
            return
        if isinstance(error, CallerError):
            self._counting.refused(self._model, error.code)
            return
        known = error if isinstance(error, MmsupError) else _BUG if isinstance(error, Exception) else _CANCELLED
        self._counting.failed(self._model, self._version, known.code, self._age_ns())

    def _close(self) -> bool:
        was_open, self._open = self._open, False
        return was_open

    def _age_ns(self) -> int:
        return time.monotonic_ns() - self.started_ns
