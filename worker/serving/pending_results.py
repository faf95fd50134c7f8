"""Results that wait for room: made, but larger than what the gateway had granted.

Each is a copy of its own, so that neither the model's next run nor a reused slot can change it. It goes with its
Grant, its Drop, its deadline or its gateway. Bounded, because it lies in the model's own memory cap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mmsup.worker.batching.batcher import QueuedRequest
from mmsup.worker.execution.outputs import OutputBytes
from mmsup.worker.serving.gateway_links import GatewayLink

COUNT_LIMIT: Final = 64
SIZE_LIMIT_BYTES: Final = 256 << 20
"""A gateway learns the size from the first result and grants enough from then on: many kept at once means that it does
not answer. One result alone may be of any size, or a large output could never be served."""


@dataclass(slots=True)
class RunTimes:
    """What the run of a request took, in nanoseconds, and in what company."""

    queue_ns: int
    input_ns: int
    infer_ns: int
    done_ns: int
    """Monotonic time at which the outputs were there."""
    batch: int


@dataclass(frozen=True, slots=True)
class PendingResult:
    """A request that ran, with its outputs."""

    request: QueuedRequest
    outputs: tuple[OutputBytes, ...]
    times: RunTimes


class PendingResults:
    """Results by (link, id)."""

    def __init__(self) -> None:
        self.results: dict[tuple[GatewayLink, int], PendingResult] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self.results)

    def add(self, result: PendingResult) -> bool:
        """Keep a result; False if there is no room for it."""
        size = _size(result)
        if self.results and (len(self) >= COUNT_LIMIT or self._size_bytes + size > SIZE_LIMIT_BYTES):
            return False
        own = tuple((name, shape, bytes(data)) for name, shape, data in result.outputs)
        self.results[result.request.key] = replace(result, outputs=own)
        self._size_bytes += size
        return True

    def pop(self, key: tuple[GatewayLink, int]) -> PendingResult | None:
        """Take a result out, None if it is not here (any more)."""
        result = self.results.pop(key, None)
        if result is not None:
            self._size_bytes -= _size(result)
        return result

    def expire(self, now_ns: int) -> list[QueuedRequest]:
        """Forget what is past its deadline; whose it was."""
        late = [each.request for each in self.results.values() if each.request.request.deadline_ns <= now_ns]
        for work in late:
            self.pop(work.key)
        return late

    def drop_link(self, link: GatewayLink) -> None:
        """A link is over: forget what was kept for it."""
        for key in [each for each in self.results if each[0] is link]:
            self.pop(key)


def _size(result: PendingResult) -> int:
    return sum(len(data) for _, _, data in result.outputs)
