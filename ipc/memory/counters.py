"""Counter tables: shared memory counters that survive the process that counts, one table per gateway seat.

The keeper creates one per seat and passes all of them to every gateway. A gateway writes its own and reads all, so any
gateway can be scraped for the sum, and no total falls when a gateway or a worker exits. One writer per table at any
time (the gateway in that seat), 8-byte stores, no lock.

Layout: ROWS rows of ROW_BYTES: 160 bytes of `model\\0version\\0...`, then u64 in the order of FIELDS. A row is
claimed at the first count for a (model, version) and never released. When all are claimed, the last row, named
`_other`, counts for the rest.

BATCH_SLOTS slots follow, one for each size of batch that a model version ran: 6 u64, which are the number of its row
plus 1, the size, and those of BATCH_FIELDS. Claimed as rows are; sizes for which there is none are not counted.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from typing import Final

ROWS: Final = 1024
ROW_BYTES: Final = 512
NAME_BYTES: Final = 160
BATCH_SLOTS: Final = 2048
BATCH_SIZES_LIMIT: Final = 64
"""Sizes counted for each model version."""
_SLOT_WORDS: Final = 6
TABLE_BYTES: Final = ROWS * ROW_BYTES + BATCH_SLOTS * _SLOT_WORDS * 8

BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Upper bounds of the request duration histogram in seconds; one more bucket is for all above."""

FIELDS: Final = (
    "success",
    "fail_REJECTED",
    "fail_CANCELED",
    "fail_BACKEND",
    "fail_OTHER",
    "inference_count",
    "exec_count",
    "request_ns",
    "queue_ns",
    "compute_input_ns",
    "compute_infer_ns",
    "compute_output_ns",
    "fail_ns",
    "refused",
    "last_inference_ms",
    "open",
    "arena_used_bytes",
    "arena_held_bytes",
    "front_fallback",
    *(f"bucket_{index}" for index in range(len(BUCKETS_S) + 1)),
    "known",
    "cache_hit",
    "cache_hit_ns",
    "cache_miss",
    "cache_miss_ns",
)
"""The tables outlive the code that counts in them: a new field is appended, where older code has left zeros."""
BATCH_FIELDS: Final = ("exec_count", "compute_input_ns", "compute_infer_ns", "compute_output_ns")
INDEX: Final = {name: index for index, name in enumerate(FIELDS)}
_WORDS: Final = ROW_BYTES // 8
_FIRST: Final = NAME_BYTES // 8
_FIRST_SLOT: Final = ROWS * _WORDS
assert _FIRST + len(FIELDS) <= _WORDS, "a row has no room for all fields"

OTHER: Final = ("_other", "")


def make_counter_table() -> int:
    """The descriptor of a new table."""
    fd = os.memfd_create("mmsup-tally", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, TABLE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class CounterTable:
    """One table. Only the gateway in its seat calls `row` and `batch`; every gateway calls the others."""

    def __init__(self, fd: int) -> None:
        self._bytes = memoryview(mmap.mmap(fd, TABLE_BYTES))
        self._words = self._bytes.cast("Q")
        self._rows: dict[tuple[str, str], int] = {}
        self._counters: dict[tuple[str, str], CounterRow] = {}
        self._slots: dict[int, dict[int, BatchCounter]] = {}
        self._slot_count = 0
        self._scan_slots()
        self._scan()

    def row(self, model: str, version: str) -> CounterRow:
        """The counters of one model version; claimed at the first call."""
        key = (model, version)
        known = self._counters.get(key)
        if known is None:
            row = self._rows[key] if key in self._rows else self._claim_row(key)
            known = self._counters[key] = CounterRow(self._words, row * _WORDS + _FIRST)
        return known

    def row_keys(self) -> list[tuple[str, str]]:
        """Model and version of all rows."""
        self._scan()
        return list(self._rows)

    def values(self, key: tuple[str, str]) -> list[int] | None:
        """The current values of a row, in the order of FIELDS; None if there is none of that key."""
        row = self._rows.get(key)
        if row is None:
            return None
        return self._words[row * _WORDS + _FIRST : row * _WORDS + _FIRST + len(FIELDS)].tolist()

    def batch(self, model: str, version: str, size: int) -> BatchCounter | None:
        """The counter of the batches of that size; claimed at the first call. None if there is no room for it."""
        row = self._rows.get((model, version))
        if row is None:
            return None
        sizes = self._slots.setdefault(row, {})
        if size not in sizes and len(sizes) < BATCH_SIZES_LIMIT and self._slot_count < BATCH_SLOTS:
            at = _FIRST_SLOT + self._slot_count * _SLOT_WORDS
            # The row is written last: readers see the slot only once its size is there.
            self._words[at + 1] = size
            self._words[at] = row + 1
            self._scan_slots()
        return sizes.get(size)

    def batch_totals(self) -> dict[tuple[str, str], dict[int, list[int]]]:
        """By model version and size of batch the current values, in the order of BATCH_FIELDS."""
        self._scan_slots()
        self._scan()  # after the slots, so that it finds the row of each
        keys = list(self._rows)
        return {
            keys[row]: {size: counter.values() for size, counter in sizes.items()} for row, sizes in self._slots.items()
        }

    def _scan_slots(self) -> None:
        for slot in range(self._slot_count, BATCH_SLOTS):
            at = _FIRST_SLOT + slot * _SLOT_WORDS
            if not self._words[at]:
                return
            self._slots.setdefault(self._words[at] - 1, {})[self._words[at + 1]] = BatchCounter(self._words, at + 2)
            self._slot_count = slot + 1

    def _scan(self) -> None:
        for row in range(len(self._rows), ROWS):
            at = row * ROW_BYTES
            if not self._bytes[at]:
                return
            model, version, _ = bytes(self._bytes[at : at + NAME_BYTES]).split(b"\0", 2)
            self._rows[model.decode(), version.decode()] = row

    def _claim_row(self, key: tuple[str, str]) -> int:
        assert key[0], "a row that begins with a zero is none to its readers"
        row = len(self._rows)
        if row >= ROWS - 1:
            key = OTHER
            if OTHER in self._rows:
                return self._rows[OTHER]
        text = f"{key[0]}\0{key[1]}\0".encode()
        assert len(text) < NAME_BYTES, f"{key} is too long a name for a row"
        # The first byte is written last: readers see the row only once its name is complete.
        at = row * ROW_BYTES
        self._bytes[at + 1 : at + len(text)] = text[1:]
        self._bytes[at] = text[0]
        self._rows[key] = row
        return row


BUCKETS: Final = INDEX["bucket_0"]
"""Place in CounterRow.own."""
_SUCCESS, _COUNT, _EXECUTIONS = (INDEX[name] for name in ("success", "inference_count", "exec_count"))
_TIMES: Final = INDEX["request_ns"]
assert FIELDS[_TIMES : _TIMES + 5] == (
    *("request_ns", "queue_ns", "compute_input_ns", "compute_infer_ns", "compute_output_ns"),
), "the times of a request are consecutive fields"
_LAST, _KNOWN = INDEX["last_inference_ms"], INDEX["known"]
_SUMS: Final = struct.Struct("@7Q")
"""Of a row: inferences, executions and the times, stored one by one as 8 bytes each."""
_SUMS_AT: Final = 8 * _COUNT
assert (_COUNT, _EXECUTIONS) == (_TIMES - 2, _TIMES - 1), "what _SUMS packs are consecutive fields"
_BATCH_SUMS: Final = struct.Struct("@4Q")


class CounterRow:
    """The counters of one model version in one table."""

    def __init__(self, words: memoryview, at: int) -> None:
        self.own = words[at : at + len(FIELDS)]

    def add_success(
        self, inferences: int, executions: int, times_ns: tuple[int, int, int, int, int], bucket: int, now_ms: int
    ) -> None:
        """Count one successful request, `times_ns` in the order of FIELDS. Called for every request."""
        own = self.own
        own[_SUCCESS] += 1
        own[_COUNT] += inferences
        if executions:
            own[_EXECUTIONS] += executions
        request_ns, queue_ns, input_ns, infer_ns, output_ns = times_ns
        own[_TIMES] += request_ns
        own[_TIMES + 1] += queue_ns
        own[_TIMES + 2] += input_ns
        own[_TIMES + 3] += infer_ns
        own[_TIMES + 4] += output_ns
        own[BUCKETS + bucket] += 1
        own[_LAST] = now_ms

    def add_known(self, requests: int, sums: tuple[int, int, int, int, int, int, int], now_ms: int) -> None:
        """Count some requests, all of them known ones, but for their buckets; `sums`: inferences, executions, times in
        the order of FIELDS."""
        own = self.own
        own[_SUCCESS] += requests
        own[_KNOWN] += requests
        own[_LAST] = now_ms
        inferences, executions, all_ns, queue_ns, input_ns, infer_ns, output_ns = sums
        a, b, c, d, e, f, g = _SUMS.unpack_from(own, _SUMS_AT)
        _SUMS.pack_into(
            own,
            _SUMS_AT,
            a + inferences,
            b + executions,
            c + all_ns,
            d + queue_ns,
            e + input_ns,
            f + infer_ns,
            g + output_ns,
        )

    def add(self, name: str, amount: int = 1) -> None:
        self.own[INDEX[name]] += amount

    def set(self, name: str, value: int) -> None:
        self.own[INDEX[name]] = value


class BatchCounter:
    """Counts the batches of one size of one model version in one table."""

    def __init__(self, words: memoryview, at: int) -> None:
        self._own = words[at : at + len(BATCH_FIELDS)]

    def add(self, times_ns: tuple[int, int, int, int, int]) -> None:
        """Count one batch, `times_ns` as for a request."""
        self.add_sums(1, *times_ns[2:])

    def add_sums(self, batches: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count some batches with these times in all."""
        a, b, c, d = _BATCH_SUMS.unpack_from(self._own)
        _BATCH_SUMS.pack_into(self._own, 0, a + batches, b + input_ns, c + infer_ns, d + output_ns)

    def values(self) -> list[int]:
        return self._own.tolist()
