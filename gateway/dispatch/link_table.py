"""The links that are up: by worker, by the model version that they serve, and behind plain routes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.messages.data import ForgetHandle
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import Metadata, ModelSpec

ENDED_LIMIT: Final = 256


@dataclass(frozen=True, slots=True)
class EndedLink:
    worker_id: WorkerId
    model: str
    at_s: float
    """Monotonic."""
    was_planned: bool
    """The worker got no new requests any more."""


class PlainRoute:
    """A model version whose requests can be sent at once, over any of its links, as long as `is_plain`: it is served,
    all its links are up, alike and unrestricted, and the server neither stops nor is replaced."""

    __slots__ = ("deadline_ns", "is_plain", "links", "metadata", "spec")

    def __init__(self, spec: ModelSpec, links: list[WorkerLink]) -> None:
        """`spec`: as routed, for admission."""
        self.is_plain = True
        self.spec = spec
        self.links = links
        self.metadata: Metadata = links[0].metadata
        self.deadline_ns = int(links[0].spec.deadline_s * 1e9)


class PlainRoutes:
    """By model and requested version. Whoever changes anything that a plain route promises calls `clear`; the next
    request decides anew."""

    def __init__(self) -> None:
        self._by_model: dict[str, dict[str, PlainRoute]] = {}

    def get(self, name: str, version: str) -> PlainRoute | None:
        return self._by_model.get(name, {}).get(version)

    def add(self, name: str, version: str, spec: ModelSpec, links: list[WorkerLink]) -> PlainRoute | None:
        """None if such a route would not be plain."""
        first = links[0] if links else None
        if first is None or any(
            not each.is_unrestricted
            or each.metadata is not first.metadata
            or each.spec.deadline_s != first.spec.deadline_s
            for each in links
        ):
            return None
        made = self._by_model.setdefault(name, {})[version] = PlainRoute(spec, list(links))
        return made

    def clear(self, name: str) -> None:
        for each in self._by_model.pop(name, {}).values():
            each.is_plain = False
            each.links = []

    def clear_all(self) -> None:
        for name in list(self._by_model):
            self.clear(name)


class LinkTable:
    def __init__(self) -> None:
        self.plain_routes = PlainRoutes()
        self.by_worker: dict[WorkerId, WorkerLink] = {}
        """All links, also those that get no new requests."""
        self.serving: dict[tuple[str, str], list[WorkerLink]] = {}
        """Those that get new requests, by model and version; no list is empty."""
        self._draining: dict[WorkerId, WorkerLink] = {}
        self.ended: deque[EndedLink] = deque(maxlen=ENDED_LIMIT)
        """Of models with sequences, the last one last."""
        self.on_added: Callable[[WorkerLink], None] = lambda _: None
        """Called with each new link."""

    def add(self, link: WorkerLink) -> None:
        for other in self.by_worker.values():
            if _version_key(other.spec) == _version_key(link.spec) and other.metadata == link.metadata:
                link.metadata = other.metadata  # one object for all instances, so caches may compare by identity
        self.by_worker[link.worker_id] = link
        self.serving.setdefault(_version_key(link.spec), []).append(link)
        self.plain_routes.clear(link.spec.name)
        self.on_added(link)

    def stop_routing(self, worker_id: WorkerId) -> None:
        """Send no new requests to this worker; its link is closed when nothing is in flight on it."""
        link = self.by_worker.get(worker_id)
        if link is None or worker_id in self._draining:
            return
        self._draining[worker_id] = link
        key = _version_key(link.spec)
        self.serving[key].remove(link)
        if not self.serving[key]:
            del self.serving[key]
        self.plain_routes.clear(link.spec.name)

    def remove(self, link: WorkerLink) -> None:
        if link.spec.sequences is not None:
            was_planned = link.worker_id in self._draining
            self.ended.append(EndedLink(link.worker_id, link.spec.name, time.monotonic(), was_planned))
        self.stop_routing(link.worker_id)
        self.by_worker.pop(link.worker_id, None)
        self._draining.pop(link.worker_id, None)

    def least_loaded(self, name: str, version: str) -> WorkerLink | None:
        """The link of this version with the fewest requests, in flight or still being received."""
        best, least = None, 0
        for link in self.serving.get((name, version), ()):
            load = link.load()
            if not link.closed and (best is None or load < least):
                best, least = link, load
        return best

    def pending(self) -> dict[tuple[str, str], int]:
        """Requests that were sent and are not being executed, by model and version; none with 0."""
        found: dict[tuple[str, str], int] = {}
        for link in self.by_worker.values():
            requests = link.in_flight.requests
            if requests and (count := len(requests) - len(requests.keys() & link.process.executing())):
                key = _version_key(link.spec)
                found[key] = found.get(key, 0) + count
        return found

    def in_flight_by_model(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for link in self.by_worker.values():
            if count := len(link.in_flight.requests):
                found[link.spec.name] += count
        return found

    def overdue(self, now_s: float) -> list[tuple[WorkerLink, float]]:
        """Links with requests in flight and no reply for longer than the model's hang limit, and for how long (s). None
        whose requests are open side by side: nothing may come for as long as their deadlines allow."""
        return [
            (link, now_s - link.channel.last_progress_s)
            for link in self.by_worker.values()
            if link.in_flight.requests
            and not link.metadata.runs_side_by_side
            and now_s - link.channel.last_progress_s > link.spec.hang_limit_s
        ]

    def close_if_draining(self, worker_id: WorkerId) -> None:
        """The worker is about to have a new link, and answers nothing over the old one."""
        link = self._draining.get(worker_id)
        if link is not None:
            link.close()

    def of_model(self, name: str) -> list[WorkerLink]:
        """All its open links, also those that get no new requests."""
        return [each for each in self.by_worker.values() if each.spec.name == name and not each.closed]

    def close_drained(self, *, keeps: Callable[[WorkerLink], bool] = lambda _: False) -> None:
        """Close the links that get no new requests and have none in flight, but those that `keeps` names."""
        for link in list(self._draining.values()):
            if not link.in_flight.requests and not keeps(link):
                link.close()

    def close_all(self) -> None:
        """Close every link; its requests end as if the worker had exited."""
        for link in list(self.by_worker.values()):
            link.close()

    def used_bytes(self) -> int:
        memories = [link.memory for link in self.by_worker.values()]
        return sum(each.requests.used_bytes + each.results.used_bytes for each in memories)

    def release_idle_memory(self) -> None:
        for link in self.by_worker.values():
            link.memory.release_idle()

    def release_unused_memory(self, now_s: float) -> None:
        for link in self.by_worker.values():
            link.memory.release_unused(now_s)


def forget_handle(links: LinkTable, handle: bytes) -> None:
    """Have the workers that may see a GPU close a handle of a client's memory."""
    for link in links.by_worker.values():
        if link.spec.device != "cpu" and not link.closed:
            link.channel.send(ForgetHandle(handle))


def _version_key(spec: ModelSpec) -> tuple[str, str]:
    return spec.name, spec.version
