"""Counts the responses of models that answer many times, by their place in the stream: Triton's `response_stats`, and
the time to the first response.

Each place has a row of its own in the counter table of the gateway, of which these fields are used:

    success, request_ns                  responses with outputs, and the time that they took in all
    compute_infer_ns, compute_output_ns  its parts
    fail_BACKEND, fail_ns                streams that failed in that place
    refused, queue_ns                    streams that ended there without a response
    fail_CANCELED, compute_input_ns      streams that were cancelled there

All places from PLACES on are counted in the last one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, Final

from mmsup.ipc.memory.counters import BUCKETS_S, CounterRow

PLACES: Final = 10
_EDGES_NS: Final = [round(edge * 1e9) for edge in BUCKETS_S]
_PLACE: Final = "~place"
_FIRST: Final = "~first/"
Json = dict[str, Any]  # a JSON object


class ResponseCounters:
    """Of one model version."""

    def __init__(self, find_row: Callable[[str], CounterRow], version: str) -> None:
        """`find_row` gives the row of the model under a name that no version has."""
        self._find_row = find_row
        self._version = version

    def record_response(self, place: int, since_start_ns: int, infer_ns: int, output_ns: int) -> None:
        if place == 0:
            first = self._find_row(_FIRST + self._version)
            first.add("success")
            first.add("request_ns", since_start_ns)
            first.add(f"bucket_{bisect_left(_EDGES_NS, since_start_ns)}")
        row = self._row(place)
        row.add("success")
        row.add("request_ns", infer_ns + output_ns)
        row.add("compute_infer_ns", infer_ns)
        row.add("compute_output_ns", output_ns)

    def record_end(self, place: int, code: str, ns: int) -> None:
        """The stream ended there: with an error, or empty."""
        count, time = ("refused", "queue_ns") if not code else ("fail_BACKEND", "fail_ns")
        if code == "cancelled":
            count, time = "fail_CANCELED", "compute_input_ns"
        row = self._row(place)
        row.add(count)
        row.add(time, ns)

    def _row(self, place: int) -> CounterRow:
        return self._find_row(_place_key(min(place, PLACES - 1), self._version))


def response_stats(model: str, version: str, totals: Mapping[tuple[str, str], Mapping[str, int]]) -> Json:
    """`response_stats` of a version, by place."""
    shown: Json = {}
    for place in range(PLACES):
        row = totals.get((model, _place_key(place, version)))
        if row is not None:
            failed, empty, cancelled = row["fail_BACKEND"], row["refused"], row["fail_CANCELED"]
            shown[str(place)] = {
                "compute_infer": {"count": row["success"], "ns": row["compute_infer_ns"]},
                "compute_output": {"count": row["success"], "ns": row["compute_output_ns"]},
                "success": {"count": row["success"], "ns": row["request_ns"]},
                "fail": {"count": failed, "ns": row["fail_ns"]},
                "empty_response": {"count": empty, "ns": row["queue_ns"]},
                "cancel": {"count": cancelled, "ns": row["compute_input_ns"]},
            }
    return shown


def first_response_version(key: str) -> str:
    """The version whose first responses a row counts, empty for any other row."""
    return key.removeprefix(_FIRST) if key.startswith(_FIRST) else ""


def _place_key(place: int, version: str) -> str:
    return f"{_PLACE}{place}/{version}"
