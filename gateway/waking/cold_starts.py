"""Requests that wait for models which are loaded from sleep: their bounds, and one question to the controller a model.

The controller loads a model once, however many gateways ask. A controller that ends takes the question along: the next
one is asked by the first request that still finds its model asleep.

The bounds are shared as those of all open requests are: a model may hold as much as is unused, so that one whose load
hangs leaves places for the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from mmsup.gateway.waking.admission import AdmissionControl
from mmsup.gateway.waking.request_wait import ColdStart, RequestWait
from mmsup.ipc.errors import MmsupError, ServerError


class ColdAdmission(AdmissionControl):
    keys = "max_cold_requests", "max_cold_bytes"
    what = "waiting for models to be loaded"
    retry_after_s = 5.0


class ColdStarts:
    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.admission = ColdAdmission(max_requests, max_bytes)
        """Of those that wait."""
        self._starts: dict[str, ColdStart] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.call: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None  # JSON, by command
        """Sends a command to the controller."""
        self.notify: Callable[[], None] = lambda: None
        """Wakes the requests that wait."""
        self.on_waited: Callable[[str, int], None] = lambda _, __: None
        """Gets the model and the time (ns) of each request that has waited."""
        self.on_started: Callable[[str], None] = lambda _: None
        """Gets each model that was loaded because a request of this gateway had asked for it."""

    def enter(self, name: str, wait: RequestWait, limit_s: float) -> None:
        """The request waits for the model from now on; ServerError `queue_full` if there is no place for it."""
        size = wait.body.held_bytes if wait.body is not None else 0
        self.admission.admit(name, None)
        if size:
            try:
                self.admission.reserve(name, None, size)
            except ServerError:
                self.admission.leave(name, 0)
                raise
        wait.cold_since_ns, wait.cold_limit_s, wait.held_bytes = time.monotonic_ns(), limit_s, size
        if wait.body is not None:
            wait.body.on_cold()

    def leave(self, name: str, wait: RequestWait) -> None:
        """The request waits no more, for whatever reason."""
        self.admission.leave(name, wait.held_bytes)
        self.on_waited(name, wait.end_cold(time.monotonic_ns()))

    def ask(self, name: str, wait: RequestWait) -> None:
        """Have the model loaded; one question at a time for all requests to it."""
        start = self._starts.get(name)
        if start is None:
            start = self._starts[name] = ColdStart()
            task = asyncio.get_running_loop().create_task(self._ask(name, start), name=f"wake {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        wait.start = start

    async def _ask(self, name: str, start: ColdStart) -> None:
        assert self.call is not None, "a gateway without a controller"
        try:
            result = await self.call("wake_for_request", {"name": name})
            if isinstance(result, dict) and result.get("started") is True:
                self.on_started(name)
        except MmsupError as error:
            if error.code == "unavailable":  # the controller has ended; what the next one sends wakes the requests
                return
            start.error = error
        finally:
            start.is_done = True
            del self._starts[name]
        self.notify()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
