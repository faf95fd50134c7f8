"""The links that are up: by worker, and by the model version that they serve."""

from __future__ import annotations

from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import ModelSpec


class LinkTable:
    def __init__(self) -> None:
        self.by_worker: dict[WorkerId, WorkerLink] = {}
        """All links, also those that get no new requests."""
        self.serving: dict[tuple[str, str], list[WorkerLink]] = {}
        """Those that get new requests, by model and version; no list is empty."""
        self._draining: dict[WorkerId, WorkerLink] = {}

    def add(self, link: WorkerLink) -> None:
        for other in self.by_worker.values():
            if _version_key(other.spec) == _version_key(link.spec) and other.metadata == link.metadata:
                link.metadata = other.metadata  # one object for all instances, so caches may compare by identity
        self.by_worker[link.worker_id] = link
        self.serving.setdefault(_version_key(link.spec), []).append(link)

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

    def remove(self, link: WorkerLink) -> None:
        self.stop_routing(link.worker_id)
        self.by_worker.pop(link.worker_id, None)
        self._draining.pop(link.worker_id, None)

    def least_loaded(self, name: str, version: str) -> WorkerLink | None:
        """The link of this version with the fewest requests, in flight or still being received."""
        best, least = None, 0
        for link in self.serving.get((name, version), ()):
            load = len(link.in_flight.requests) + link.reserved_requests
            if not link.closed and (best is None or load < least):
                best, least = link, load
        return best

    def overdue(self, now_s: float) -> list[tuple[WorkerLink, float]]:
        """Links with requests in flight and no reply for longer than the model's hang limit, and for how long (s)."""
        return [
            (link, now_s - link.channel.last_progress_s)
            for link in self.by_worker.values()
            if link.in_flight.requests and now_s - link.channel.last_progress_s > link.spec.hang_limit_s
        ]

    def close_drained(self) -> None:
        """Close the links that get no new requests and have none in flight."""
        for link in list(self._draining.values()):
            if not link.in_flight.requests:
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


def _version_key(spec: ModelSpec) -> tuple[str, str]:
    return spec.name, spec.version
