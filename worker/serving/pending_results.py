"""Results that wait for memory: larger than the output buffer that the gateway had granted.

Each is a copy, so that neither the model's next run nor a reused slot can change it. It stays until the gateway grants
a larger buffer, cancels, or is gone, or until the deadline passes. Their number and size are bounded, because they
count towards the model's memory cap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from mmsup.worker.batching.priority_queue import QueuedRequest
from mmsup.worker.execution.outputs import OutputBytes
from mmsup.worker.serving.gateway_links import GatewayLink

COUNT_LIMIT: Final = 64
SIZE_LIMIT_BYTES: Final = 256 << 20
"""A gateway learns the size from the first result and grants enough from then on: many pending results mean that it
does not answer. A single result may be of any size, or a large output could never be served."""

WorkerRequest: TypeAlias = QueuedRequest[GatewayLink]


@dataclass(slots=True)
class RunTimes:
    queue_ns: int
    input_ns: int
    infer_ns: int
    done_ns: int
    """Monotonic time at which the engine returned."""
    batch: int
    """Requests that ran together."""
    rows: int
    """Of all of them; 1 for a model without a batch axis."""


@dataclass(frozen=True, slots=True)
class PendingResult:
    request: WorkerRequest
    outputs: tuple[OutputBytes, ...]
    times: RunTimes


class PendingResults:
    def __init__(self) -> None:
        self.results: dict[tuple[GatewayLink, int], PendingResult] = {}
        self._size_bytes = 0

    def add(self, result: PendingResult) -> bool:
        """Copy a result; False if the limits leave no room for it."""
        size = _size(result)
        if self.results and (len(self.results) >= COUNT_LIMIT or self._size_bytes + size > SIZE_LIMIT_BYTES):
            return False
        own = tuple((name, shape, bytes(data)) for name, shape, data in result.outputs)
        self.results[result.request.key] = replace(result, outputs=own)
        self._size_bytes += size
        return True

    def pop(self, key: tuple[GatewayLink, int]) -> PendingResult | None:
        """Remove and return a result; None if it is not here any more."""
        result = self.results.pop(key, None)
        if result is not None:
            self._size_bytes -= _size(result)
        return result

    def expire(self, now_ns: int) -> list[WorkerRequest]:
        """Remove the results past their deadline; returns their requests."""
        expired = [each.request for each in self.results.values() if each.request.message.deadline_ns <= now_ns]
        for request in expired:
            self.pop(request.key)
        return expired

    def drop_link(self, link: GatewayLink) -> None:
        for key in [each for each in self.results if each[0] is link]:
            self.pop(key)


def _size(result: PendingResult) -> int:
    return sum(len(data) for _, _, data in result.outputs)
