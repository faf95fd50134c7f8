"""Which of the waiting requests run next. Pure.

Order is strict: a batch is a run of neighbours at the head of the queue, never a pick from the middle. So a caller
is never overtaken. Nothing waits for company: a batch is what has already come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mmsup.ipc.messages import Infer
from mmsup.ipc.page import RING

RUN_REQUESTS: Final = RING // 2
"""Requests of a run at most: the status page remembers those of two."""


@dataclass(slots=True, eq=False)
class Work:
    """One request that waits. `identity` says which gateway asked."""

    identity: bytes
    request: Infer
    arrived_ns: int

    @property
    def key(self) -> tuple[bytes, int]:
        """Unique in this worker: ids are per link."""
        return self.identity, self.request.id

    @property
    def rows(self) -> int:
        """Length of the batch axis, 1 for a request without inputs."""
        inputs = self.request.inputs
        return inputs[0].shape[0] if inputs and inputs[0].shape else 1


@dataclass(slots=True)
class Taken:
    """What leaves the queue now: every request of its head, in one of two lists."""

    expired: list[Work] = field(default_factory=list[Work])
    batch: list[Work] = field(default_factory=list[Work])


def take(waiting: Iterable[Work], now_ns: int, max_batch_size: int) -> Taken:
    """The head of the queue: what is past its deadline, and what shall run together.

    `max_batch_size` 0: the model knows no batch axis, one request at a time.
    """
    taken = Taken()
    rows = 0
    for work in waiting:
        if work.request.deadline_ns <= now_ns:
            taken.expired.append(work)
            continue
        if taken.batch:
            rows += work.rows
            if rows > max_batch_size or not is_compatible(taken.batch[0].request, work.request):
                break
        else:
            rows = work.rows
        taken.batch.append(work)
        if rows >= max_batch_size or len(taken.batch) >= RUN_REQUESTS:
            break
    return taken


def is_compatible(one: Infer, other: Infer) -> bool:
    """Whether two requests may share a run: alike in all but the length of the batch axis."""
    if len(one.inputs) != len(other.inputs) or one.outputs != other.outputs or one.parameters != other.parameters:
        return False
    for mine, its in zip(one.inputs, other.inputs, strict=True):
        if mine.name != its.name or mine.datatype != its.datatype or mine.shape[1:] != its.shape[1:]:
            return False
        if not mine.shape or not its.shape:
            return False
    return is_regular(one) and is_regular(other)


def is_regular(request: Infer) -> bool:
    """Whether all inputs have the same, non-empty batch axis."""
    first = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 0
    return first > 0 and all(each.shape and each.shape[0] == first for each in request.inputs)
