"""Chooses which queued requests run next as one batch, or until when to wait for more. Pure.

A batch is a run of neighbours at the head of the queue, never a pick from the middle. So within one priority no request
overtakes another (priority_queue.py gives the order).

A batch starts
- at once, when it is full: the largest preferred size that the queue holds, `max_rows`, a neighbour that cannot join,
  or a request that runs alone;
- at once, when as many requests are queued as were here together lately (batch_policy.py): no other is likely to come.
  So a single caller never waits, and N callers that each wait for their answer are batched once all N have come;
- else when the oldest has waited for `max_delay_ns`, or the earliest deadline leaves just the time of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic

from mmsup.ipc.memory.status_page import RING
from mmsup.worker.batching.priority_queue import L, QueuedRequest
from mmsup.worker.batching.request_signature import BatchKey

MAX_BATCH_REQUESTS: Final = RING // 2
"""The status page remembers the requests of two batches."""
DEADLINE_MARGIN_NS: Final = 2_000_000
"""A batch that starts because of a deadline starts this much before the last moment, or 1 / DEADLINE_MARGIN_DIVISOR of
the whole wait if that is more: a busy machine wakes no process on time."""
DEADLINE_MARGIN_DIVISOR: Final = 8


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How large the next batch may be and how long to wait for it."""

    max_rows: int
    """0: the model has no batch axis, and runs one request at a time."""
    preferred: tuple[int, ...] = ()
    max_delay_ns: int = 0
    expected_requests: int = 0
    """Requests that were here together lately."""
    run_ns: int = 0
    """How long a run takes."""


@dataclass(slots=True)
class Batch(Generic[L]):
    """What leaves the queue now: every request of its head, in one of two lists."""

    expired: list[QueuedRequest[L]]
    requests: list[QueuedRequest[L]]
    wait_until_ns: int = 0
    """When to ask again, unless a request comes before; 0 if this batch is to run."""


def next_batch(queued: Iterable[QueuedRequest[L]], now_ns: int, rule: BatchRule) -> Batch[L]:
    """The expired requests at the head of the queue, and those that run together now."""
    expired: list[QueuedRequest[L]] = []
    batch: list[QueuedRequest[L]] = []
    batch_key: BatchKey | None = None
    rows = preferred_count = 0
    is_full = False
    for request in queued:
        if request.message.deadline_ns <= now_ns:
            expired.append(request)
            continue
        signature = request.signature
        if not batch:
            batch_key = signature.batch_key
        elif rows + signature.rows > rule.max_rows or batch_key is None or signature.batch_key is not batch_key:
            is_full = True
            break
        rows += signature.rows
        batch.append(request)
        if rows in rule.preferred:
            preferred_count = len(batch)
        if batch_key is None or rows >= rule.max_rows or len(batch) >= MAX_BATCH_REQUESTS:
            is_full = True
            break
    if preferred_count:
        return Batch(expired, batch[:preferred_count])
    if is_full or not rule.max_delay_ns or len(batch) >= rule.expected_requests:
        return Batch(expired, batch)
    until_ns = _wait_limit_ns(batch, rule)
    return Batch(expired, batch) if until_ns <= now_ns else Batch(expired, [], until_ns)


def batch_of_alike(waiting: int, rows: int, rule: BatchRule) -> int:
    """How many of so many waiting requests, of `rows` rows each and alike in all else, `next_batch` runs now, whenever
    they came and as long as none has expired; 0 if it depends on more than that."""
    if rule.preferred:
        return 0
    most = min(max(rule.max_rows // rows, 1), MAX_BATCH_REQUESTS)
    is_full = waiting > most or (waiting == most and (rows * most >= rule.max_rows or most == MAX_BATCH_REQUESTS))
    if is_full or not rule.max_delay_ns or waiting >= rule.expected_requests:
        return min(waiting, most)
    return 0


def _wait_limit_ns(batch: list[QueuedRequest[L]], rule: BatchRule) -> int:
    """Until when all of these can wait; in the past for an empty batch."""
    oldest_ns = min([request.arrived_ns for request in batch], default=0)
    latest_start_ns = min([_latest_start_ns(request) for request in batch], default=0)
    return min(oldest_ns + rule.max_delay_ns, latest_start_ns - rule.run_ns)


def _latest_start_ns(request: QueuedRequest[L]) -> int:
    deadline_ns = request.message.deadline_ns
    return deadline_ns - max(DEADLINE_MARGIN_NS, (deadline_ns - request.arrived_ns) // DEADLINE_MARGIN_DIVISOR)
