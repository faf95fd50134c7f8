"""Which of the waiting requests run next, or until when to wait for company. Pure.

Order is strict: a batch is a run of neighbours at the head of what waits, never a pick from the middle. So a caller is
overtaken by nobody of its own class (`waiting.py` has the order).

When a run begins:
- at once, when it is full: the largest preferred size that is there, `max_rows`, a neighbour that cannot join, or a
  request that runs alone;
- at once, when as many requests are here as there were together of late (`company.py`): nobody else is likely to come.
  So a lone caller never waits, and N callers that each wait for their answer are waited for until all N have come;
- else when the oldest has waited for `delay_ns`, or the earliest deadline leaves just the time of a run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mmsup.ipc.memory.status_page import RING
from mmsup.ipc.messages.data import Infer
from mmsup.worker.batching.request_signature import BatchKey, RequestSignature

if TYPE_CHECKING:
    from mmsup.worker.serving.gateway_links import GatewayLink

MAX_BATCH_REQUESTS: Final = RING // 2
"""Requests of a run at most: the status page remembers those of two."""
DEADLINE_MARGIN_NS: Final = 2_000_000
"""A run that begins for the sake of a deadline begins this much before the last moment, or SLACK_SHARE of the whole
wait: a busy machine wakes nobody on time."""
DEADLINE_MARGIN_DIVISOR: Final = 8


class QueuedRequest:
    """One request that waits. `link` says which gateway asked; `level` is its class of priority."""

    __slots__ = ("arrived_ns", "key", "kind", "level", "link", "request")

    def __init__(
        self, link: GatewayLink, request: Infer, kind: RequestSignature, arrived_ns: int, level: int = 0
    ) -> None:
        self.link = link
        self.request = request
        self.kind = kind
        self.arrived_ns = arrived_ns
        self.level = level
        self.key = (link, request.id)
        """Unique in this worker: ids are per link."""


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How large a run is and how long it is waited for, as things stand.

    `max_rows` 0: the model knows no batch axis, one request at a time.
    """

    max_rows: int
    preferred: tuple[int, ...] = ()
    max_delay_ns: int = 0
    expected_requests: int = 0
    """Requests that were here together of late."""
    run_ns: int = 0
    """How long a run takes."""


@dataclass(slots=True)
class Batch:
    """What leaves the queue now: every request of its head, in one of two lists."""

    expired: list[QueuedRequest]
    requests: list[QueuedRequest]
    wait_until_ns: int = 0
    """If nothing runs although something waits: when to ask again, unless something comes before."""


def next_batch(waiting: Iterable[QueuedRequest], now_ns: int, rule: BatchRule) -> Batch:
    """The head of what waits: what is past its deadline, and what shall run together now."""
    expired: list[QueuedRequest] = []
    batch: list[QueuedRequest] = []
    group: BatchKey | None = None
    rows = best = 0
    is_full = False
    for work in waiting:
        if work.request.deadline_ns <= now_ns:
            expired.append(work)
            continue
        kind = work.kind
        if not batch:
            group = kind.group
        elif rows + kind.rows > rule.max_rows or group is None or kind.group is not group:
            is_full = True
            break
        rows += kind.rows
        batch.append(work)
        if rows in rule.preferred:
            best = len(batch)
        if group is None or rows >= rule.max_rows or len(batch) >= MAX_BATCH_REQUESTS:
            is_full = True
            break
    if best:
        return Batch(expired, batch[:best])
    if is_full or not rule.max_delay_ns or len(batch) >= rule.expected_requests:
        return Batch(expired, batch)
    until_ns = _wait_limit_ns(batch, rule)
    return Batch(expired, batch) if until_ns <= now_ns else Batch(expired, [], until_ns)


def _wait_limit_ns(batch: list[QueuedRequest], rule: BatchRule) -> int:
    """Until when all of these can wait; something far off if there is none."""
    oldest = min([work.arrived_ns for work in batch], default=0)
    last = min([_latest_start_ns(work) for work in batch], default=0)
    return min(oldest + rule.max_delay_ns, last - rule.run_ns)


def _latest_start_ns(work: QueuedRequest) -> int:
    deadline_ns = work.request.deadline_ns
    return deadline_ns - max(DEADLINE_MARGIN_NS, (deadline_ns - work.arrived_ns) // DEADLINE_MARGIN_DIVISOR)
