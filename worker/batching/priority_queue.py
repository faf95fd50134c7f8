"""The queue of requests that wait for a run: by priority, first come first served within one priority. Pure.

Priority 1 runs first; a request that names no priority has the model's default. No priority can starve another: what
has waited for STARVATION_NS goes first in every second run. So the highest priority waits for one run more at worst,
and an overdue lower one gets half of the runs.

A priority may have a bound and a timeout of its own. A request past that timeout is rejected, or delayed until all
other requests have run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, Generic, TypeAlias, TypeVar

from mmsup.ipc.messages.data import Infer
from mmsup.ipc.specs import ModelSpec, QueuePolicy
from mmsup.worker.batching.request_signature import RequestSignature

STARVATION_NS: Final = 1_000_000_000
DELAYED_PRIORITY: Final = 1 << 62
"""Of requests that were delayed by their policy; no request can name it."""
NO_POLICY: Final = QueuePolicy()
L = TypeVar("L", bound=Hashable)
"""The link to the gateway that sent a request."""


class QueuedRequest(Generic[L]):
    __slots__ = ("arrived_ns", "key", "link", "message", "priority", "signature")

    def __init__(self, link: L, message: Infer, signature: RequestSignature, arrived_ns: int, priority: int) -> None:
        self.link = link
        self.message = message
        self.signature = signature
        self.arrived_ns = arrived_ns
        self.priority = priority
        self.key = (link, message.id)
        """Unique in this worker: ids are unique per link."""


# Requests are taken from the head, and any may be cancelled: a plain dict is slow at its head.
RequestQueue: TypeAlias = "OrderedDict[tuple[L, int], QueuedRequest[L]]"


class PriorityQueue(Generic[L]):
    """A first-in first-out queue for each priority that occurs."""

    def __init__(self, spec: ModelSpec) -> None:
        self.effective_priority = spec.effective_priority
        self.default_priority = spec.effective_priority(0)
        self._policies = {each.level: each for each in spec.queue_policies}
        self.has_timeouts = any(each.timeout_s for each in spec.queue_policies)
        """Whether `pop_timed_out` can ever give a request."""
        self._queues: dict[int, RequestQueue[L]] = {}
        """Invariant: ordered by priority. Empty queues stay, since priorities are few."""
        self.size = 0
        self.running: Sequence[QueuedRequest[L]] = ()
        """Taken from here, and in the run now or in the last one."""
        self.ran_starving = False
        """Whether the last run went ahead of a higher priority."""

    def add(self, request: QueuedRequest[L]) -> bool:
        """Append a request; False if the queue of its priority is full."""
        queue = self._queues.get(request.priority)
        if queue is None:
            queue = self._add_queue(request.priority)
        bound = self._policy(request.priority).max_queue if self._policies else 0
        if bound and len(queue) >= bound:
            return False
        queue[request.key] = request
        self.size += 1
        return True

    def has(self, request: QueuedRequest[L]) -> bool:
        """Whether a request of the same link, id and priority is queued."""
        return request.key in self._queues.get(request.priority, ())

    def remove(self, request: QueuedRequest[L]) -> None:
        del self._queues[request.priority][request.key]
        self.size -= 1

    def cancel(self, link: L, number: int) -> bool:
        """Remove the request of this link and id; False if it is not queued any more."""
        for queue in self._queues.values():
            if queue.pop((link, number), None) is not None:
                self.size -= 1
                return True
        return False

    def drop_link(self, link: L) -> None:
        """Remove all requests of a link that was closed."""
        for queue in self._queues.values():
            for request in [each for each in queue.values() if each.link is link]:
                self.remove(request)

    def in_order(self, now_ns: int) -> Iterable[QueuedRequest[L]]:
        """All queued requests in the order in which they are to run."""
        if len(self._queues) == 1:
            for queue in self._queues.values():
                return queue.values()
        queues = [queue for queue in self._queues.values() if queue]
        lower = [queue for priority, queue in self._queues.items() if queue and priority != DELAYED_PRIORITY][1:]
        starving = None if self.ran_starving else _most_starving(lower, now_ns)
        if starving is not None:
            queues.remove(starving)
            queues.insert(0, starving)
        return chain.from_iterable([queue.values() for queue in queues])

    def only_queue(self) -> RequestQueue[L] | None:
        """All queued requests if they are of one priority without a timeout, so that arrival alone gives the order."""
        queues = [queue for queue in self._queues.values() if queue]
        return queues[0] if len(queues) == 1 and not self.has_timeouts else None

    def pop(self, queue: RequestQueue[L]) -> QueuedRequest[L]:
        """Remove and return the head of that queue."""
        _, request = queue.popitem(last=False)
        self.size -= 1
        return request

    def on_run_start(self, first: QueuedRequest[L]) -> None:
        """Note whether this request, the first of a run and removed already, went ahead of a higher priority."""
        if len(self._queues) > 1:
            self.ran_starving = any(queue for priority, queue in self._queues.items() if priority < first.priority)

    def on_uncontested_run(self) -> None:
        """Note a run while no request of another priority was queued: it went ahead of none."""
        self.ran_starving = False

    def pop_timed_out(self, now_ns: int) -> Iterator[QueuedRequest[L]]:
        """Remove and return requests past the timeout of their priority; those that are only delayed stay, as the
        last to run."""
        for priority, queue in list(self._queues.items()):
            policy = self._policy(priority)
            since_ns = now_ns - int(policy.timeout_s * 1e9)
            while policy.timeout_s and queue and (request := next(iter(queue.values()))).arrived_ns <= since_ns:
                self.remove(request)
                if policy.delays:
                    request.priority = DELAYED_PRIORITY
                    self.add(request)
                else:
                    yield request

    def _policy(self, priority: int) -> QueuePolicy:
        if priority == DELAYED_PRIORITY:
            return NO_POLICY
        return self._policies.get(priority) or self._policies.get(0, NO_POLICY)

    def _add_queue(self, priority: int) -> RequestQueue[L]:
        self._queues = dict(sorted([*self._queues.items(), (priority, OrderedDict())]))
        return self._queues[priority]


def _most_starving(queues: Sequence[RequestQueue[L]], now_ns: int) -> RequestQueue[L] | None:
    """The queue whose head has waited longest, if that is STARVATION_NS or more."""
    found: RequestQueue[L] | None = None
    since_ns = now_ns - STARVATION_NS
    for queue in queues:
        arrived_ns = next(iter(queue.values())).arrived_ns
        if arrived_ns <= since_ns:
            found, since_ns = queue, arrived_ns
    return found
