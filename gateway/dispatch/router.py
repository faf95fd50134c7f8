"""The workers as the front sees them: where a request may go, and what became of those that went.

Covers: the links that are up, waiting for one, bounds per model, verdicts on lives that ended, questions to the brain.
Does not cover: one request (exchange.py), one link (link.py), HTTP.

While the brain is away nothing here changes but links that end: requests are served over those that are up.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mmsup.gateway.dispatch.admission import AdmissionControl
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.link_memory_quota import MemoryQuota
from mmsup.gateway.dispatch.poison_requests import PoisonRequests
from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.output_sizes import OutputSizeEstimator
from mmsup.ipc.errors import MmsupError, ModelError, ServerError, WorkerError, make_error
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import ConfigureGateway, VersionState
from mmsup.ipc.specs import ModelSpec

VERDICT_WAIT_S: Final = 0.05
"""How long the answer to a death waits for the brain's reading of the evidence; half of what we promise in all."""
VERDICTS_LIMIT: Final = 256
DEFAULT_VERDICT: Final = WorkerError("worker_crashed", "the worker died with this request in flight; cause unknown")
ReadWaitOptions = Callable[[int], Awaitable[tuple[int, int]]]
"""By the deadline that holds without it: the deadline and the priority that a request wishes."""
_WAITABLE_STATES: Final = frozenset(
    {"absent", "starting", "loading", "warming", "ready", "draining", "stopping", "backoff"}
)
SWEEP_INTERVAL_S: Final = 5.0
"""Between two looks for memory that nobody uses."""
CALL_TIMEOUT_S: Final = 3600.0
"""A load may take as long as its model's own limit; this bound only ends a question that the brain lost."""


class Router:
    """One per gateway process."""

    def __init__(self, configure: ConfigureGateway, executor: ThreadPoolExecutor) -> None:
        self.server_name = configure.server_name
        self.server_version = configure.server_version
        self.max_body_bytes = configure.max_body_bytes
        self.restart_grace_s = configure.restart_grace_s
        self.executor = executor
        self.quota = MemoryQuota(configure.arena_bytes)
        self.routes = RouteTable()
        self.output_sizes = OutputSizeEstimator()
        self.poison_requests = PoisonRequests(executor, self.wait_for_verdict)
        self.poison_requests.on_change = self._update_restrictions
        self.draining = False
        self.retired = False
        """Another gateway serves in our stead: each connection ends with its next answer."""
        self.links: dict[tuple[int, int], WorkerLink] = {}
        self._serving: dict[tuple[str, str], list[WorkerLink]] = {}
        """The same links by model and version."""
        self.send_call: Callable[[int, str, dict[str, Any]], None] = lambda _id, _verb, _arguments: None  # control.py
        self.send_ended: Callable[[WorkerLink], None] = lambda _link: None  # control.py
        self._readiness = (False, "starting")
        self._next_sweep_s = 0.0
        self.admission = AdmissionControl(configure.max_requests, configure.max_request_bytes)
        self._waiters: dict[asyncio.Future[None], int] = {}
        """Who waits for a change, in the order of arrival, and of which class of priority that is."""
        self._verdicts: OrderedDict[tuple[int, int], asyncio.Future[MmsupError]] = OrderedDict()
        self._pending_calls: dict[int, asyncio.Future[Any]] = {}  # results are JSON, by verb
        self._last_call_id = 0

    # Readiness.

    def ready(self) -> tuple[bool, str]:
        """Whether the server as a whole is ready, and why not."""
        if self.draining:
            return False, "stopping"
        return self._readiness

    def set_readiness(self, ready: bool, reason: str) -> None:
        """What the brain said of it."""
        self._readiness = (ready, reason)

    # Requests.

    async def open(
        self, name: str, version: str, deadline_ns: int | None = None, read_wait_options: ReadWaitOptions | None = None
    ) -> DispatchedRequest:
        """Admit a request and find it a worker; MmsupError if it cannot be served now. `wish` is asked only if a worker
        must be waited for."""
        state = self._admit(name, version)
        self.admission.enter(name)
        try:
            if deadline_ns is None:
                deadline_ns = _default_deadline_ns(state.spec)
            priority = 0
            if read_wait_options is not None and self._least_loaded(name, state.version) is None:
                deadline_ns, priority = await read_wait_options(deadline_ns)
            link = await self.acquire(name, version, deadline_ns, priority)
        except BaseException:
            self.on_request_closed(name, 0)
            raise
        return DispatchedRequest(self, link, version, deadline_ns)

    def try_open(self, name: str, version: str) -> DispatchedRequest | None:
        """The same, or None if a worker must be waited for."""
        state = self._admit(name, version)
        links = self._serving.get((name, state.version))
        if links is None:
            return None
        link = links[0] if len(links) == 1 and links[0].is_routable else self._least_loaded(name, state.version)
        if link is None:
            return None
        self.admission.enter(name)
        return DispatchedRequest(self, link, version, time.monotonic_ns() + link.timeout_ns)

    def _admit(self, name: str, version: str) -> VersionState:
        """The version that would serve a request, if it may be served at all."""
        if self.draining:
            raise ServerError("draining", "the server is stopping", model=name, retry_after_s=5)
        state = self.routes.version(name, version)
        self.admission.check(name, state.spec)
        return state

    def reserve_bytes(self, exchange: DispatchedRequest, size: int) -> None:
        """Count a body against the bounds; ServerError `queue_full`."""
        self.admission.reserve(exchange.spec, size)
        exchange.reserved_bytes += size

    def on_request_closed(self, name: str, size: int) -> None:
        """An exchange was left, which held so many bytes of requests to this model."""
        self.admission.leave(name, size)
        if self._waiters and not self.admission.open_requests:
            self.notify_waiters()  # who waits for a worker is open himself, and no end of others concerns him

    @property
    def open_requests(self) -> int:
        """Requests admitted and not yet left."""
        return self.admission.open_requests

    @property
    def open_by_model(self) -> dict[str, int]:
        """The same, for each model that has any."""
        return dict(self.admission.requests_by_model)

    @property
    def memory_used_bytes(self) -> int:
        """Arena memory that requests and results use."""
        arenas = [link.memory for link in self.links.values()]
        return sum(each.requests.used_bytes + each.results.used_bytes for each in arenas)

    async def acquire(self, name: str, version: str, deadline_ns: int, priority: int = 0) -> WorkerLink:
        """The least loaded link that serves this version; waits, within bounds, for one that is coming. Who waits goes
        on by class of priority, and within a class who came first."""
        grace_end_ns = time.monotonic_ns() + int(self.restart_grace_s * 1e9)
        while True:
            state = self.routes.version(name, version)
            link = self._least_loaded(name, state.version)
            if link is not None:
                return link
            now_ns = time.monotonic_ns()
            error = unavailable_error(name, state, (grace_end_ns - now_ns) / 1e9, (deadline_ns - now_ns) / 1e9)
            if error is not None:
                raise error
            level = state.spec.effective_priority(priority) if state.spec is not None else 0
            await self._wait_for_change((min(grace_end_ns, deadline_ns) - now_ns) / 1e9, level)

    def _least_loaded(self, name: str, version: str) -> WorkerLink | None:
        links = self._serving.get((name, version), ())
        best, least = None, 0
        for link in links:
            if link.is_routable and not link.closed:
                load = len(link.in_flight.entries) + link.reserved_requests
                if best is None or load < least:
                    best, least = link, load
        return best

    # Changes: routes, links, ends of exchanges.

    def notify_waiters(self) -> None:
        """Wake whoever waits for a link or for the end of all requests, the highest class first."""
        for waiting in sorted(self._waiters, key=self._waiters.__getitem__):
            if not waiting.done():
                waiting.set_result(None)
        self._waiters.clear()

    async def _wait_for_change(self, timeout_s: float, level: int = 0) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiting] = level
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await waiting
        except TimeoutError:
            pass
        finally:
            self._waiters.pop(waiting, None)

    async def wait_until_drained(self) -> None:
        """Returns when no request is open."""
        while self.open_requests:
            await self._wait_for_change(1.0)

    def add_link(self, link: WorkerLink) -> None:
        """A worker became reachable."""
        link.on_close = self._on_link_closed
        self.links[link.worker_id] = link
        for other in self._serving.get(_served_version(link), ()):
            if other.metadata == link.metadata:
                link.metadata = other.metadata  # one object for all instances: what is known of it holds for each
        self._serving.setdefault(_served_version(link), []).append(link)
        link.is_unrestricted = not link.closed and not self.poison_requests.has_entries(link.spec.name)
        self.notify_waiters()

    def unlink(self, life: tuple[int, int]) -> None:
        """Nothing new goes there; it ends when it is empty."""
        link = self.links.get(life)
        if link is not None:
            link.is_routable = False

    def _on_link_closed(self, link: WorkerLink) -> None:
        if self.links.pop(link.worker_id, None) is not None:
            self._serving[_served_version(link)].remove(link)
            if not self._serving[_served_version(link)]:
                del self._serving[_served_version(link)]
        self._verdict_future(link.worker_id)
        self.send_ended(link)
        if link.last_batch:
            self.poison_requests.investigate(link)
        link.lost_requests.clear()  # what they hold of the arena is not held for the record
        self.notify_waiters()

    def _update_restrictions(self, model: str) -> None:
        """Whether requests to a model must be held against its list."""
        for link in self.links.values():
            if link.spec.name == model:
                link.is_unrestricted = not link.closed and not self.poison_requests.has_entries(model)

    def release_idle_memory(self) -> None:
        """Give back every extent that no request uses, on all links."""
        for link in self.links.values():
            link.memory.release_idle()

    # Verdicts: why a life ended.

    def _verdict_future(self, life: tuple[int, int]) -> asyncio.Future[MmsupError]:
        if life not in self._verdicts:
            self._verdicts[life] = asyncio.get_running_loop().create_future()
            while len(self._verdicts) > VERDICTS_LIMIT:
                self._verdicts.popitem(last=False)[1].cancel()
        return self._verdicts[life]

    def set_verdict(self, life: tuple[int, int], error: MmsupError) -> None:
        """The cause of a death, or of one that is about to be; the first word holds."""
        verdict = self._verdict_future(life)
        if not verdict.done():
            verdict.set_result(error)

    async def wait_for_verdict(self, link: WorkerLink) -> MmsupError:
        """Why that life ended, for an answer that must go out soon: `cause unknown` if nobody has said."""
        try:
            async with asyncio.timeout(VERDICT_WAIT_S):
                error = await asyncio.shield(self._verdict_future(link.worker_id))
        except TimeoutError:
            error = DEFAULT_VERDICT
        name = link.message.spec.name
        return make_error(error.code, error.text, model=name, retry_after_s=1, retryable=error.retryable)

    # Questions to the brain.

    async def call_controller(self, verb: str, arguments: dict[str, Any]) -> Any:  # arguments and result: JSON, by verb
        """What the brain answers; MmsupError as it says, or `unavailable` if it does not answer in time."""
        self._last_call_id += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()  # as above
        self._pending_calls[self._last_call_id] = answer
        try:
            self.send_call(self._last_call_id, verb, arguments)
            failpoint("gateway.asked")
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise ServerError("unavailable", "the supervisor did not answer; try again", retry_after_s=2) from None
        finally:
            self._pending_calls = {key: each for key, each in self._pending_calls.items() if each is not answer}

    def on_controller_answer(self, number: int, result: Any, error: MmsupError | None) -> None:  # result: JSON, by verb
        """The brain's answer to a question; one that nobody waits for any more is dropped."""
        answer = self._pending_calls.pop(number, None)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def on_controller_restart(self) -> None:
        """The brain that was asked is dead, and its successor knows nothing of the questions."""
        for answer in self._pending_calls.values():
            if not answer.done():
                text = "the supervisor was restarted while it worked on this; try again"
                answer.set_exception(ServerError("unavailable", text, retry_after_s=1))

    # What the working loop looks after.

    def overdue_links(self, now: float) -> list[tuple[WorkerLink, float]]:
        """Links whose oldest request has waited past the model's hang limit with nothing coming back."""
        return [
            (link, now - link.last_progress)
            for link in self.links.values()
            if link.in_flight and now - link.last_progress > link.message.spec.hang_limit_s
        ]

    def release_unused_memory(self, now_s: float) -> None:
        """Give back memory that nobody has used for long; looks only now and then, however often it is called."""
        if now_s < self._next_sweep_s:
            return
        self._next_sweep_s = now_s + SWEEP_INTERVAL_S
        self.poison_requests.expire(now_s)
        for link in self.links.values():
            link.memory.release_unused(now_s)

    def close_drained_links(self) -> None:
        """Let go of links that were unlinked and are empty."""
        for link in [each for each in self.links.values() if not each.is_routable and not each.in_flight]:
            link.close()


def _served_version(link: WorkerLink) -> tuple[str, str]:
    return link.message.spec.name, link.message.spec.version


def _default_deadline_ns(spec: ModelSpec | None) -> int:
    """When a request that comes now is late, by its model's own limit."""
    return time.monotonic_ns() + int((spec.deadline_s if spec else 60.0) * 1e9)


def unavailable_error(name: str, state: VersionState, grace_s: float, deadline_s: float) -> MmsupError | None:
    """Why a version without a worker cannot be waited for (any longer); None if it can. Pure."""
    if state.state not in _WAITABLE_STATES:
        code = state.code or "model_failed"
        text = f"model '{name}' version {state.version} is {state.state}: {state.reason or 'no reason is known'}"
        return make_error(code, text, model=name, retry_after_s=max(state.retry_after_s, 1))
    if deadline_s <= 0:
        text = f"Request timeout expired while model '{name}' was {state.state}"
        return ServerError("deadline_exceeded", text, model=name)
    broken = state.code in ModelError.codes  # it is being tried again, but nobody should wait for that
    if grace_s > 0 and state.retry_after_s <= grace_s and not broken:
        return None
    wait_s = max(state.retry_after_s, 1)
    if broken:
        return make_error(
            state.code, f"model '{name}' is {state.state}: {state.reason}", model=name, retry_after_s=wait_s
        )
    code = "model_loading" if state.state in ("absent", "starting", "loading", "warming") else "model_restarting"
    return WorkerError(
        code, f"model '{name}' is {state.state}: {state.reason or 'not up yet'}", model=name, retry_after_s=wait_s
    )
