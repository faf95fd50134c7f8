"""The responses to one request, one by one, of a model that answers once or of one that answers any number of times.

Until the first response a request is like any other. After it there is no deadline, and no second try: a worker that
ends then ends the stream, with the verdict on it.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import EXECUTED_CODES, DispatchedRequest, Dispatcher
from mmsup.gateway.dispatch.in_flight import InFlightRequest, WorkerExited
from mmsup.gateway.observability.request_counters import RequestTimer, error_code
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.ipc.errors import MmsupError, ServerError, WorkerError, make_error
from mmsup.ipc.messages.data import InferReply, ResponsePart

GRANTS_LIMIT: Final = 2
"""Of larger buffers for one part."""


class SingleResponse:
    """Of a model that answers once, as a stream of one response."""

    def __init__(self, ask: Callable[[], Awaitable[InferenceResult]]) -> None:
        self._ask: Callable[[], Awaitable[InferenceResult]] | None = ask
        self._result: InferenceResult | None = None

    async def next(self) -> InferenceResult | None:
        ask, self._ask = self._ask, None
        if ask is None:
            return None
        self._result = await ask()
        return self._result

    @property
    def last_reply(self) -> InferReply:
        assert self._result is not None, "the model was not asked"
        return self._result.reply

    def record_end(self, error: BaseException | None) -> None:
        """Nothing is counted beside the request."""


class ResponseStream:
    """For a request that is open and parsed. Whoever opened the request closes it, which cancels what is not read."""

    def __init__(
        self, dispatched: DispatchedRequest, job: InferenceJob, router: Dispatcher, timer: RequestTimer
    ) -> None:
        """`timer`: of the request. Its outcome is for the caller to count, that of each response is counted here."""
        self._timer = timer
        self._responses = timer.responses() if dispatched.metadata.decoupled else None
        self._dispatched = dispatched
        self._job = job
        self._router = router
        self._in_flight: InFlightRequest | None = None
        """Set when the first of many responses has come."""
        self._is_over = False
        self._is_taken = True
        self._since_ns = timer.started_ns
        """When the last response came."""
        self._grants = 0
        self.count = 0
        """Responses so far."""
        self._last: InferReply | None = None

    @property
    def last_reply(self) -> InferReply:
        """The reply that ended it, with the times of all."""
        assert self._last is not None, "a stream ended without its last reply"
        return self._last

    async def next(self) -> InferenceResult | None:
        """The next response, None after the last; its memory is used until the next call. MmsupError says whose fault
        it is that there is none."""
        if self._is_over:
            return None
        try:
            found = await self._next()
        except BaseException as error:
            self._is_over = True
            self.record_end(error)
            raise
        if found is None:
            self.record_end(None)
        elif self._responses is not None:
            now_ns, reply = time.monotonic_ns(), found.reply
            since_start_ns = now_ns - self._timer.started_ns
            times_ns = min(reply.infer_ns, since_start_ns), min(reply.output_ns, since_start_ns)  # the worker's account
            self._responses.record_response(self.count - 1, since_start_ns, *times_ns)
            self._since_ns = now_ns
        return found

    def record_end(self, error: BaseException | None) -> None:
        """Count how it ended; called from outside only where its reader does not read to the end."""
        responses, self._responses = self._responses, None
        if responses is not None:
            code = error_code(error) if error is not None else ""
            responses.record_end(self.count, code, time.monotonic_ns() - self._since_ns)

    async def _next(self) -> InferenceResult | None:
        request = self._in_flight
        if request is None:
            return self._first(await self._dispatched.resume(self._job))
        assert request.parts is not None, "a response that ended the request was not the last"
        if not self._is_taken:
            self._is_taken = True
            request.parts.take()
        while True:
            event = await request.parts.next()
            if isinstance(event, InferenceResult):
                return self._result(event)
            if isinstance(event, ResponsePart):
                await self._grant(request, event.needed_bytes)
                continue
            self._is_over = True
            if isinstance(event, InferReply) and event.code in EXECUTED_CODES:
                await self._on_survived()
            if isinstance(event, InferReply) and not event.code:
                self._last = event
                return None
            raise await self._error(event)

    def _first(self, result: InferenceResult) -> InferenceResult | None:
        if isinstance(result.reply, ResponsePart):
            self._in_flight = self._dispatched.in_flight
            return self._result(result)
        self._is_over = True
        self._last = result.reply
        if self._dispatched.metadata.decoupled:
            return None
        self.count = 1
        return result

    def _result(self, result: InferenceResult) -> InferenceResult:
        self.count += 1
        self._grants = 0
        self._is_taken = False
        return result

    async def _grant(self, request: InFlightRequest, needed_bytes: int) -> None:
        """Give the worker a larger buffer for the next part. All parts before it have been read."""
        link, model = self._dispatched.link, self._dispatched.spec.name
        self._grants += 1
        if self._grants > GRANTS_LIMIT:
            text = f"model '{model}' asked again and again for a larger result buffer"
            raise WorkerError("bad_worker_reply", text, model=model)
        try:
            slot = await link.memory.allocate(link.memory.results, needed_bytes)
        except ServerError:
            if not link.closed:
                raise
            return  # its exit is the next event
        assert request.parts is not None, "a part came before the first"
        if link.closed:
            return
        if request.parts.end is not None:
            link.memory.results.free(slot)
            return
        link.grant(request, slot)

    async def _on_survived(self) -> None:
        """Its worker has lived through the whole of it: if it was a suspect it has run alone, and is none any more."""
        lists, spec = self._router.poison_requests, self._dispatched.spec
        if lists.has_entries(spec.name):
            inputs = self._dispatched.input_tensors(self._job)
            lists.on_survived(spec.name, await lists.fingerprint(spec.name, spec.version, inputs))

    async def _error(self, event: InferReply | WorkerExited | ServerError) -> MmsupError:
        model = self._dispatched.spec.name
        if isinstance(event, InferReply):
            return make_error(event.code, event.text, model=model)
        if isinstance(event, WorkerExited):
            return await self._router.verdicts.wait(self._dispatched.link.worker_id, model)
        return event
