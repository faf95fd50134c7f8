"""The router: admits requests and finds the worker link that each goes over, waiting for a worker where one is coming.

Covers: admission, the choice of the least loaded link, waiting by priority, what follows when a link is closed.
Does not cover: one request (dispatched_request.py), one link (worker_link.py), HTTP.

While no controller runs, requests are served over the links that are up; nothing changes here but that links close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.exit_verdicts import Verdicts
from mmsup.gateway.dispatch.link_memory import MemoryQuota
from mmsup.gateway.dispatch.link_table import LinkTable, PlainRoute
from mmsup.gateway.dispatch.poison_requests import PoisonRequests
from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.output_sizes import OutputSizeEstimator
from mmsup.gateway.waking import wait_policy
from mmsup.gateway.waking.admission import AdmissionControl
from mmsup.gateway.waking.change_waiters import ChangeWaiters
from mmsup.gateway.waking.cold_starts import ColdStarts
from mmsup.gateway.waking.request_wait import RequestWait, WaitingBody
from mmsup.ipc.errors import MmsupError, ServerError
from mmsup.ipc.messages.gateway_control import ConfigureGateway, VersionState

METADATA_WAIT_NS: Final = 60_000_000_000
"""For a worker that is not there, beside the time that it takes to load."""


class ServingStatus:
    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """`on_end` is called when the server is stopping, or this gateway is to be replaced."""
        self._on_end = on_end
        self.ready = False
        """As the controller last sent it, for the whole server."""
        self.reason = "starting"
        """Why it is not ready."""
        self.draining = False
        """The server is stopping: no new requests."""
        self.retired = False
        """Another gateway replaces this one: each connection is closed after its next response."""

    def drain(self) -> None:
        self.draining = True
        self._on_end()

    def retire(self) -> None:
        self.retired = True
        self._on_end()

    def readiness(self) -> tuple[bool, str]:
        """Whether the server as a whole is ready, and why not."""
        return (False, "stopping") if self.draining else (self.ready, self.reason)


class Router:
    def __init__(self, configuration: ConfigureGateway, executor: ThreadPoolExecutor) -> None:
        self.configuration = configuration
        self.executor = executor
        self.memory_quota = MemoryQuota(configuration.arena_bytes)
        self.links = LinkTable()
        self.status = ServingStatus(self.links.plain_routes.clear_all)
        self.admission = AdmissionControl(configuration.max_requests, configuration.max_request_bytes)
        self.routes = RouteTable(self.links.plain_routes.clear)
        self.output_sizes = OutputSizeEstimator()
        self.verdicts = Verdicts()
        self.poison_requests = PoisonRequests(executor, self.verdicts)
        self.poison_requests.on_change = self._update_restrictions
        self.waiters = ChangeWaiters(ColdStarts(configuration.max_cold_requests, configuration.max_cold_bytes))
        self.send_link_closed: Callable[[WorkerLink], None] = lambda _: None
        """Tells the controller what was in flight; set by controller_channel.py."""

    async def open(
        self, name: str, version: str, deadline: int | None = None, body: WaitingBody | None = None
    ) -> DispatchedRequest:
        """Admit a request and find it a worker; MmsupError if it cannot be served now. `deadline`: nanoseconds of
        CLOCK_MONOTONIC. `body` is asked only if a worker must be waited for."""
        state = self.find_version(name, version)
        self.admission.admit(name, state.spec)
        try:
            if deadline is None:
                limit_s = state.spec.deadline_s if state.spec is not None else 60.0
                deadline = time.monotonic_ns() + int(limit_s * 1e9)
            wait = RequestWait(deadline, body=body)
            link = await self.acquire(name, version, wait)
        except BaseException:
            self.admission.leave(name, 0)
            raise
        return DispatchedRequest(self, link, version, wait.deadline_ns)

    def try_open(self, name: str, version: str) -> DispatchedRequest | None:
        """The same, or None if a worker must be waited for. Every fast request comes here."""
        state = self.routes.defaults.get(name) if not version and not self.status.draining else None
        if state is None:
            state = self.find_version(name, version)
        links = self.links.serving.get((name, state.version))
        if links is None:
            return None
        link = links[0] if len(links) == 1 else self.links.least_loaded(name, state.version)
        if link is None:
            return None
        self.admission.admit(name, state.spec)
        return DispatchedRequest(self, link, version, time.monotonic_ns() + int(link.spec.deadline_s * 1e9))

    def plain_route(self, name: str, version: str) -> PlainRoute | None:
        """The route of a request that was just served; None if the next one like it may have to be looked at."""
        if self.status.draining or self.status.retired or self.poison_requests.has_entries(name):
            return None
        found = self.links.plain_routes.get(name, version)
        if found is None:
            try:
                state = self.routes.version(name, version)
            except MmsupError:
                return None
            if state.spec is not None:
                links = self.links.serving.get((name, state.version), [])
                found = self.links.plain_routes.add(name, version, state.spec, links)
        return found

    def find_version(self, name: str, version: str) -> VersionState:
        """The version that serves a request; MmsupError if there is none, or the server is stopping."""
        if self.status.draining:
            raise ServerError("draining", "the server is stopping", model=name, retry_after_s=5)
        return self.routes.version(name, version)

    async def acquire(self, name: str, version: str, wait: RequestWait) -> WorkerLink:
        """The least loaded link that serves this version. Waits for a worker that is coming: until the deadline and at
        most `restart_grace_s`, or for a model that is asleep as long as that may take to load."""
        cold = self.waiters.cold_starts
        grace_end_ns = time.monotonic_ns() + int(self.configuration.restart_grace_s * 1e9)
        try:
            while True:
                state = self.routes.version(name, version)
                link = self.links.least_loaded(name, state.version)
                if link is not None and wait.choose is not None:
                    link = wait.choose(self.links.serving[name, state.version])
                if link is not None:
                    return link
                if state.wake_wait_s and not wait.cold_since_ns:
                    cold.enter(name, wait, state.wake_wait_s)
                if wait.body is not None:
                    body, wait.body = wait.body, None
                    await body.read_options(wait)
                    continue
                if state.state == wait_policy.ASLEEP and not wait.has_asked():
                    cold.ask(name, wait)
                now_ns = time.monotonic_ns()
                error = wait_policy.wait_error(name, state, wait, grace_end_ns, now_ns)
                if error is not None:
                    raise error
                effective = state.spec.effective_priority(wait.priority) if state.spec is not None else 0
                limit_s = min(wait.grace_s(grace_end_ns, now_ns), wait.left_s(now_ns))
                await self.waiters.wait(limit_s, effective)
        finally:
            if wait.cold_since_ns:
                cold.leave(name, wait)

    async def described_version(self, name: str, version: str) -> VersionState:
        """A version with its metadata; loads the model, as a request would, if only its worker can tell them."""
        state = self.routes.version(name, version)
        if state.metadata is None and state.wake_wait_s:
            wait = RequestWait(time.monotonic_ns() + METADATA_WAIT_NS)
            link = await self.acquire(name, version, wait)
            state = replace(state, metadata=link.metadata)
        return state

    def pending_requests(self) -> dict[tuple[str, str], int]:
        """Requests that are open and not being executed, by model and version. Those that wait for a worker, or whose
        bodies are being received, count for the model's default version."""
        pending, in_flight = self.links.pending(), self.links.in_flight_by_model()
        for name, count in self.admission.requests_by_model.items():
            waiting = count - in_flight.get(name, 0)
            default = self.routes.model(name).default if name in self.routes else ""
            if waiting > 0 and default:
                key = name, default
                pending[key] = pending.get(key, 0) + waiting
        return pending

    async def wait_until_drained(self) -> None:
        empty = asyncio.Event()
        self.admission.on_empty = empty.set
        while self.admission.open_requests:
            empty.clear()
            await empty.wait()

    def add_link(self, link: WorkerLink) -> None:
        link.on_close = self._on_link_closed
        self.links.add(link)
        self._update_restrictions(link.spec.name)
        self.waiters.notify()

    def _on_link_closed(self, link: WorkerLink) -> None:
        exited = link.close_record
        assert exited is not None, "an open link is reported as closed"
        self.links.remove(link)
        self.verdicts.expect(link.worker_id)
        self.send_link_closed(link)
        last_batch = [each.request for each in exited.lost_requests if each.executing]
        if last_batch:
            self.poison_requests.investigate(link, last_batch, ran_alone=exited.ran_alone)
        exited.lost_requests.clear()  # so that the record does not keep their memory
        self.waiters.notify()

    def _update_restrictions(self, model: str) -> None:
        """Whether requests to this model must be compared with a poison list."""
        self.links.plain_routes.clear(model)
        restricted = self.poison_requests.has_entries(model)
        for link in self.links.by_worker.values():
            if link.spec.name == model:
                link.is_unrestricted = not link.closed and not restricted
