"""The router: admits requests and finds the worker link that each goes over, waiting for a worker where one is coming.

Covers: admission, the choice of the least loaded link, waiting by priority, what follows when a link is closed.
Does not cover: one request (dispatched_request.py), one link (worker_link.py), HTTP.

While no controller runs, requests are served over the links that are up; nothing changes here but that links close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mmsup.gateway.dispatch.admission import AdmissionControl
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.exit_verdicts import Verdicts
from mmsup.gateway.dispatch.link_memory import MemoryQuota
from mmsup.gateway.dispatch.link_table import LinkTable, PlainRoute
from mmsup.gateway.dispatch.poison_requests import PoisonRequests
from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.output_sizes import OutputSizeEstimator
from mmsup.ipc.errors import AWAITING_ROOM, MmsupError, ModelError, ServerError, WorkerError, make_error
from mmsup.ipc.messages.gateway_control import ConfigureGateway, VersionState

ReadWaitOptions = Callable[[int], Awaitable[tuple[int, int]]]
"""Reads the deadline and the priority that a request asks for; its argument is the deadline if it asks for none."""
_WAITABLE_STATES: Final = frozenset(
    {"absent", "starting", "loading", "warming", "ready", "draining", "stopping", "backoff"}
)


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


class ChangeWaiters:
    """Requests that wait for a change of routes or links: woken by priority, within a priority in order of arrival."""

    def __init__(self) -> None:
        self.priorities: dict[asyncio.Future[None], int] = {}

    def notify(self) -> None:
        for future in sorted(self.priorities, key=self.priorities.__getitem__):
            if not future.done():
                future.set_result(None)
        self.priorities.clear()

    async def wait(self, timeout_s: float, priority: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.priorities[future] = priority
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await future
        except TimeoutError:
            pass
        finally:
            self.priorities.pop(future, None)


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
        self.waiters = ChangeWaiters()
        self.send_link_closed: Callable[[WorkerLink], None] = lambda _: None
        """Tells the controller what was in flight; set by controller_channel.py."""

    async def open(
        self, name: str, version: str, deadline: int | None = None, read_wait_options: ReadWaitOptions | None = None
    ) -> DispatchedRequest:
        """Admit a request and find it a worker; MmsupError if it cannot be served now. `deadline`: nanoseconds of
        CLOCK_MONOTONIC. `read_wait_options` is called only if a worker must be waited for."""
        state = self._find_version(name, version)
        self.admission.admit(name, state.spec)
        try:
            if deadline is None:
                limit_s = state.spec.deadline_s if state.spec is not None else 60.0
                deadline = time.monotonic_ns() + int(limit_s * 1e9)
            priority = 0
            if read_wait_options is not None and self.links.least_loaded(name, state.version) is None:
                deadline, priority = await read_wait_options(deadline)
            link = await self.acquire(name, version, deadline, priority)
        except BaseException:
            self.admission.leave(name, 0)
            raise
        return DispatchedRequest(self, link, version, deadline)

    def try_open(self, name: str, version: str) -> DispatchedRequest | None:
        """The same, or None if a worker must be waited for. Every fast request comes here."""
        state = self.routes.defaults.get(name) if not version and not self.status.draining else None
        if state is None:
            state = self._find_version(name, version)
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

    def _find_version(self, name: str, version: str) -> VersionState:
        """The version that serves a request; MmsupError if there is none, or the server is stopping."""
        if self.status.draining:
            raise ServerError("draining", "the server is stopping", model=name, retry_after_s=5)
        return self.routes.version(name, version)

    async def acquire(self, name: str, version: str, deadline_ns: int, priority: int = 0) -> WorkerLink:
        """The least loaded link that serves this version. Waits for a worker that is coming, until the deadline and at
        most `restart_grace_s`."""
        grace_end_ns = time.monotonic_ns() + int(self.configuration.restart_grace_s * 1e9)
        while True:
            state = self.routes.version(name, version)
            link = self.links.least_loaded(name, state.version)
            if link is not None:
                return link
            now_ns = time.monotonic_ns()
            error = unavailable_error(name, state, (grace_end_ns - now_ns) / 1e9, (deadline_ns - now_ns) / 1e9)
            if error is not None:
                raise error
            effective = state.spec.effective_priority(priority) if state.spec is not None else 0
            await self.waiters.wait((min(grace_end_ns, deadline_ns) - now_ns) / 1e9, effective)

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


def unavailable_error(name: str, state: VersionState, grace_s: float, deadline_s: float) -> MmsupError | None:
    """Why a version without a worker cannot be waited for (any longer); None if it can. Pure."""
    if state.state not in _WAITABLE_STATES:
        code = state.code or "model_failed"
        which = f"model '{name}' version {state.version}" if state.version else f"model '{name}'"
        text = f"{which} is {state.state}: {state.reason or 'no reason is known'}"
        return make_error(code, text, model=name, retry_after_s=max(state.retry_after_s, 1))
    if deadline_s <= 0:
        text = f"Request timeout expired while model '{name}' was {state.state}"
        return ServerError("deadline_exceeded", text, model=name)
    # Such a model is restarted, but a request should not wait for that.
    is_broken = state.code in ModelError.codes or state.code in AWAITING_ROOM
    if grace_s > 0 and state.retry_after_s <= grace_s and not is_broken:
        return None
    wait_s = max(state.retry_after_s, 1)
    if is_broken:
        text = f"model '{name}' is not ready (state: {state.state}): {state.reason}"
        return make_error(state.code, text, model=name, retry_after_s=wait_s)
    code = "model_loading" if state.state in ("absent", "starting", "loading", "warming") else "model_restarting"
    text = f"model '{name}' is not ready (state: {state.state}): {state.reason or 'not up yet'}"
    return WorkerError(code, text, model=name, retry_after_s=wait_s)
