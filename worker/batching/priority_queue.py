"""The requests that wait for a run, in the order in which they run. Pure.

Each request is of a class: 1 runs first, the model's own class holds for requests that name none. Within a class the
first to come is the first to run. Between classes the order is strict, but nobody starves: what has waited for AGED_NS
goes first in every other run, however high the others are. So the highest class waits for one run more at worst, and
the lowest has half of the runs once it is late.

A class may have a bound and a timeout of its own. What is past the timeout is answered, or waits on behind all classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from mmsup.ipc.specs import ModelSpec, QueuePolicy
from mmsup.worker.batching.batcher import QueuedRequest
from mmsup.worker.serving.gateway_links import GatewayLink

STARVATION_NS: Final = 1_000_000_000
DELAYED_PRIORITY: Final = 1 << 62
"""The class of what was delayed by its policy; no request can name it."""

RequestQueue = OrderedDict[
    tuple[GatewayLink, int], QueuedRequest
]  # its head is taken, any may be dropped: a plain dict is slow at its head


class PriorityQueue:
    """Lines of requests, one for each class that occurs."""

    def __init__(self, spec: ModelSpec) -> None:
        self.priority_of = spec.effective_priority
        self.default_priority = spec.effective_priority(0)
        """The class of requests that name none."""
        self._policies = {each.level: each for each in spec.queue_policies}
        self.has_timeouts = any(each.timeout_s for each in spec.queue_policies)
        """Whether `late` has anything to look for."""
        self._queues: dict[int, RequestQueue] = {}
        """Invariant: in the order of their classes. Lines stay when they are empty; classes are few."""
        self.size = 0
        """Requests that wait."""
        self._ran_starving = False

    def __len__(self) -> int:
        return self.size

    def add(self, work: QueuedRequest) -> bool:
        """A request has come; False if its class has no room for it."""
        line = self._queues.get(work.level)
        if line is None:
            line = self._add_queue(work.level)
        bound = self._policy(work.level).max_queue if self._policies else 0
        if bound and len(line) >= bound:
            return False
        line[work.key] = work
        self.size += 1
        return True

    def has(self, work: QueuedRequest) -> bool:
        """Whether a request of this link and id waits in the same class."""
        return work.key in self._queues.get(work.level, ())

    def remove(self, work: QueuedRequest) -> None:
        """A request is about to run, or was answered otherwise."""
        del self._queues[work.level][work.key]
        self.size -= 1

    def drop(self, link: GatewayLink, number: int) -> QueuedRequest | None:
        """Take out the request of this link and id, None if it does not wait (any more)."""
        for line in self._queues.values():
            work = line.pop((link, number), None)
            if work is not None:
                self.size -= 1
                return work
        return None

    def drop_link(self, link: GatewayLink) -> None:
        """A link is over, and nobody waits for what it asked."""
        for line in self._queues.values():
            for work in [each for each in line.values() if each.link is link]:
                self.remove(work)

    def in_order(self, now_ns: int) -> Iterable[QueuedRequest]:
        """All that waits, what runs next first."""
        if len(self._queues) == 1:
            for line in self._queues.values():
                return line.values()
        lines = [line for line in self._queues.values() if line]
        overtaken = [line for level, line in self._queues.items() if line and level != DELAYED_PRIORITY][1:]
        aged = None if self._ran_starving else _most_starving(overtaken, now_ns)
        if aged is not None:
            lines.remove(aged)
            lines.insert(0, aged)
        return chain.from_iterable([line.values() for line in lines])

    def only_queue(self) -> RequestQueue | None:
        """All that waits, if it is of one class: then nothing but its arrival says who is next. None otherwise."""
        if len(self._queues) != 1 or self.has_timeouts:
            return None
        return next(iter(self._queues.values()))

    def pop(self, line: RequestQueue) -> QueuedRequest:
        """Take out the head of that line."""
        _, work = line.popitem(last=False)
        self.size -= 1
        return work

    def on_run_start(self, first: QueuedRequest) -> None:
        """A run begins whose first request is this one, already removed: whether a higher class had to wait for it."""
        if len(self._queues) > 1:
            self._ran_starving = any(line for level, line in self._queues.items() if level < first.level)

    def pop_timed_out(self, now_ns: int) -> Iterator[QueuedRequest]:
        """Take out what has waited past its class's timeout; what is only delayed by that goes behind all others."""
        for level, line in list(self._queues.items()):
            policy = self._policy(level)
            since_ns = now_ns - int(policy.timeout_s * 1e9)
            while policy.timeout_s and line and (work := next(iter(line.values()))).arrived_ns <= since_ns:
                self.remove(work)
                if policy.delays:
                    work.level = DELAYED_PRIORITY
                    self.add(work)
                else:
                    yield work

    def _policy(self, level: int) -> QueuePolicy:
        if level == DELAYED_PRIORITY:
            return NO_POLICY
        return self._policies.get(level) or self._policies.get(0, NO_POLICY)

    def _add_queue(self, level: int) -> RequestQueue:
        self._queues = dict(sorted([*self._queues.items(), (level, RequestQueue())]))
        return self._queues[level]


NO_POLICY: Final = QueuePolicy()


def _most_starving(lines: Sequence[RequestQueue], now_ns: int) -> RequestQueue | None:
    """Of these lines the one whose head has waited longest, if that is too long."""
    oldest: RequestQueue | None = None
    since_ns = now_ns - STARVATION_NS
    for line in lines:
        arrived_ns = next(iter(line.values())).arrived_ns
        if arrived_ns <= since_ns:
            oldest, since_ns = line, arrived_ns
    return oldest
