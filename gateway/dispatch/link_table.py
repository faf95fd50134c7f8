"""The links that are up: by worker, and by the model version that they serve."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.specs import ModelSpec

WorkerId = tuple[int, int]
"""Instance and generation."""


@dataclass(slots=True)
class ServingLinks:
    """The links to which new requests for one model version may go; never empty."""

    timeout_ns: int
    """The time limit of a request that names none."""
    links: list[WorkerLink] = field(default_factory=list)


class LinkTable:
    """One per gateway."""

    def __init__(self) -> None:
        self.by_worker: dict[WorkerId, WorkerLink] = {}
        """All links, also those that get no new requests."""
        self.serving: dict[tuple[str, str], ServingLinks] = {}
        """By model and version."""

    def add(self, link: WorkerLink) -> None:
        """New requests may go to this worker."""
        for other in self.by_worker.values():
            if _version_key(other.spec) == _version_key(link.spec) and other.metadata == link.metadata:
                link.metadata = other.metadata  # one object for all instances, so caches may compare by identity
        self.by_worker[link.worker_id] = link
        key = _version_key(link.spec)
        if key not in self.serving:
            self.serving[key] = ServingLinks(timeout_ns(link.spec))
        self.serving[key].links.append(link)

    def stop_routing(self, worker_id: WorkerId) -> None:
        """Send no new requests to this worker; its link is closed when nothing is in flight on it."""
        link = self.by_worker.get(worker_id)
        serving = self.serving.get(_version_key(link.spec)) if link is not None else None
        if link is None or serving is None or link not in serving.links:
            return
        serving.links.remove(link)
        if not serving.links:
            del self.serving[_version_key(link.spec)]

    def remove(self, link: WorkerLink) -> None:
        """The link is closed."""
        self.stop_routing(link.worker_id)
        self.by_worker.pop(link.worker_id, None)

    def least_loaded(self, name: str, version: str) -> WorkerLink | None:
        """The link of this version with the fewest requests, in flight or still being received."""
        serving = self.serving.get((name, version))
        best, least = None, 0
        for link in serving.links if serving is not None else ():
            load = len(link.in_flight.requests) + link.reserved_requests
            if not link.closed and (best is None or load < least):
                best, least = link, load
        return best

    def overdue(self, now_s: float) -> list[tuple[WorkerLink, float]]:
        """Links with requests in flight that received nothing for longer than the model's hang limit, and for how
        long in seconds."""
        return [
            (link, now_s - link.channel.last_progress_s)
            for link in self.by_worker.values()
            if link.in_flight.requests and now_s - link.channel.last_progress_s > link.spec.hang_limit_s
        ]

    def close_drained(self) -> None:
        """Close the links that get no new requests and have none in flight."""
        for link in list(self.by_worker.values()):
            serving = self.serving.get(_version_key(link.spec))
            if not link.in_flight.requests and (serving is None or link not in serving.links):
                link.close()

    def close_all(self) -> None:
        """Close every link; its requests end as if the worker had exited."""
        for link in list(self.by_worker.values()):
            link.close()

    def used_bytes(self) -> int:
        """Shared memory in use by requests and results."""
        memories = [link.memory for link in self.by_worker.values()]
        return sum(each.requests.used_bytes + each.results.used_bytes for each in memories)

    def release_idle_memory(self) -> None:
        """Release every extent that no request uses."""
        for link in self.by_worker.values():
            link.memory.release_idle()

    def release_unused_memory(self, now_s: float) -> None:
        """Release the extents that have not been used for long."""
        for link in self.by_worker.values():
            link.memory.release_unused(now_s)


def timeout_ns(spec: ModelSpec | None) -> int:
    """The time limit of a request that names none."""
    return int((spec.deadline_s if spec is not None else 60.0) * 1e9)


def deadline_ns(spec: ModelSpec | None) -> int:
    """The deadline (CLOCK_MONOTONIC) of a request that comes now and names no timeout."""
    return time.monotonic_ns() + timeout_ns(spec)


def _version_key(spec: ModelSpec) -> tuple[str, str]:
    return spec.name, spec.version
