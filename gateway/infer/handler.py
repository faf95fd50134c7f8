"""`POST …/infer`: from the socket into the model's memory, to the worker, and back to the socket.

Order: the head is judged before anything is allocated; a worker is found before the body is read; the body goes to
where the model will read it; only then is it parsed. Each request is counted once, whatever became of it.

Two ways lead through here: `answer`, the handler of requests that aiohttp reads and writes, and `errand.py`, for those
that the front serves. What is decided is decided by the same functions.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.infer import class_labels
from mmsup.gateway.infer.early_body import EarlyBody
from mmsup.gateway.infer.fair_queue import FairQueue
from mmsup.gateway.observability.request_counters import RequestCounters, RequestTimer
from mmsup.gateway.protocol import binary_tensors, infer_request, infer_response, json_document
from mmsup.gateway.protocol.binary_tensors import BodyLayout
from mmsup.gateway.protocol.infer_request import InferRequest
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.specs import Metadata

_log = logging.getLogger("mmsup.gateway")


class RequestIdentity(Protocol):
    """Whoever's request it is; the parser notes by what name its client calls it."""

    request_id: str

    @property
    def model(self) -> str:
        """The model that the path named."""
        ...


class ParsedRequest:
    """A request that was read: what to run, and how the reply shall look."""

    __slots__ = ("inference_count", "job", "metadata", "request")

    def __init__(self, asked: InferRequest, metadata: Metadata) -> None:
        names = [each.spec.name for each in asked.outputs]
        whole = names == [each.name for each in metadata.outputs]
        self.request = asked
        self.metadata = metadata
        self.job = InferenceJob(asked.inputs, () if whole else names, asked.parameters, asked.priority)
        self.inference_count = asked.inputs[0].shape[0] if metadata.max_batch_size and asked.inputs else 1
        """How many it counts for: the size of its own batch."""

    def without_data(self, run: InferenceJob) -> ParsedRequest:
        """The same to be remembered: none of its client's tensors is in it. `run`: the run without them."""
        made = self.with_job(run)
        made.request = replace(self.request, inputs=[])
        return made

    def with_job(self, run: InferenceJob) -> ParsedRequest:
        """The same for a run of the same shapes."""
        made = ParsedRequest.__new__(ParsedRequest)
        made.request, made.metadata, made.inference_count, made.job = (
            self.request,
            self.metadata,
            self.inference_count,
            run,
        )
        return made


class InferHandler:
    """What both ways share; `documents` is the thread for what takes long to parse, one at a time."""

    def __init__(self, backend: Router, counting: RequestCounters, documents: Executor) -> None:
        self.router = backend
        self.counters = counting
        self.fair_queue = FairQueue(backend.routes)
        self._parser_executor = documents

    async def handle(self, call: HttpRequest) -> StreamResponse:
        """The reply to a request that aiohttp reads."""
        ticket = RequestTimer(self.counters, call.model, call.version)
        try:
            return await self._serve(call, ticket)
        except BaseException as error:
            ticket.fail(error)
            raise

    async def _serve(self, call: HttpRequest, ticket: RequestTimer) -> StreamResponse:
        size = request_body.check_head(call.request, self.router.max_body_bytes)
        early = EarlyBody(call, size, ticket.started_ns)
        async with await self.router.open(call.model, call.version, None, early.read_wait_options) as exchange:
            ticket.set_version(exchange.version)
            order = await self._read_body(call, exchange, size, early.body)
            exchange.request_id = call.request_id
            apply_timeout(exchange, order, ticket)
            made = await self.finish(exchange, order, ticket, None)
            return await response.send_inference(call.request, made, call.echo_headers, last=self.router.retired)

    async def _read_body(
        self, call: HttpRequest, exchange: DispatchedRequest, size: int | None, body: bytearray | None
    ) -> ParsedRequest:
        """Take the body in, unless it is there already, and read it."""
        request = call.request
        headers = request.headers.getall(binary_tensors.HEADER, [])
        if len(headers) > 1:
            raise CallerError("bad_request", f"{binary_tensors.HEADER} is given {len(headers)} times", model=call.model)
        header = headers[0] if headers else None
        if size is None:
            await request_body.send_continue(request)
            limit = self.router.max_body_bytes
            limit = min(limit, binary_tensors.JSON_LIMIT_BYTES) if header is None else limit
            body = await request_body.read_all(request, limit, exchange.reserve_bytes)
        if body is not None:
            layout = binary_tensors.body_layout(header, len(body))
            space = await exchange.allocate(layout.space)
            await request_body.lay(body, space[layout.start : layout.space])
        else:
            assert size is not None, "a body of unknown length was gathered"
            layout = binary_tensors.body_layout(header, size)
            space = await exchange.allocate(layout.space)
            await request_body.send_continue(request)
            await request_body.read_into(request, space[layout.start : layout.space])
        if not is_slow_to_parse(layout, exchange.metadata):
            return parse_request(call, exchange.metadata, space, layout)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._parser_executor, parse_request, call, exchange.metadata, space, layout)

    async def finish(
        self, exchange: DispatchedRequest, order: ParsedRequest, ticket: RequestTimer, said: RequestEvent | None
    ) -> infer_response.InferResponse:
        """The reply, waiting for what must be waited for; `said`: what was heard of the request so far."""
        outcome = await exchange.resume(order.job, said)
        made = build_response(exchange, order, outcome)
        if made is None:
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(self._parser_executor, _build_slow_response, exchange, order, outcome)
        ticket.finish(outcome, order.inference_count)
        return made


def apply_timeout(exchange: DispatchedRequest, order: ParsedRequest, ticket: RequestTimer) -> None:
    """The request is about to go out: its own timeout counts from when its head came."""
    if order.request.timeout_us:
        exchange.deadline_ns = min(exchange.deadline_ns, ticket.started_ns + order.request.timeout_us * 1000)


def is_slow_to_parse(layout: BodyLayout, metadata: Metadata) -> bool:
    """Whether a body is parsed beside the loop."""
    if layout.size <= request_body.THREAD_PARSE_BYTES:
        return False
    if layout.header > request_body.THREAD_PARSE_BYTES:
        return True
    if layout.size - layout.header <= request_body.THREAD_PARSE_BYTES or not layout.header:
        return False
    return any(each.datatype == "BYTES" for each in metadata.inputs)


def parse_request(caller: RequestIdentity, metadata: Metadata, space: memoryview, layout: BodyLayout) -> ParsedRequest:
    """The request that lies in `space`. May run beside the loop: it changes nothing but the caller's own id."""
    if layout.start and not layout.header:
        return ParsedRequest(
            infer_request.parse_raw_request(binary_tensors.raw_input(caller.model, metadata, space, layout), metadata),
            metadata,
        )
    value = json_document.parse_json(space[layout.start : layout.blobs_start])
    caller.request_id = infer_request.request_id(value) or caller.request_id
    asked = infer_request.parse_request(
        value, caller.model, metadata, binary_tensors.Blobs(space, layout.blobs_start, layout.space)
    )
    return ParsedRequest(asked, metadata)


def build_response(
    exchange: DispatchedRequest, order: ParsedRequest, outcome: InferenceResult
) -> infer_response.InferResponse | None:
    """The reply, or None if making it takes long or reads a file."""
    wanted = order.request.outputs
    if any(each.classes for each in wanted):
        return None
    binary_names = {each.spec.name for each in wanted if each.binary}
    if (
        sum(len(each.data) for each in outcome.outputs if each.name not in binary_names)
        > request_body.THREAD_PARSE_BYTES
    ):
        return None
    return infer_response.build_response(_origin(exchange, order, {}), wanted, outcome.outputs)


def _build_slow_response(
    exchange: DispatchedRequest, order: ParsedRequest, outcome: InferenceResult
) -> infer_response.InferResponse:
    classified = any(each.classes for each in order.request.outputs)
    names = class_labels.read_labels(exchange.spec) if classified else {}
    return infer_response.build_response(_origin(exchange, order, names), order.request.outputs, outcome.outputs)


def _origin(
    exchange: DispatchedRequest, order: ParsedRequest, names: dict[str, list[str]]
) -> infer_response.ResponseContext:
    batched = exchange.metadata.max_batch_size > 0
    return infer_response.ResponseContext(exchange.model, exchange.version, order.request.id, batched, names)


def client_error(error: Exception) -> MmsupError:
    """What a client is told of the error that its request ended in; a bug of ours is logged with its trace."""
    if isinstance(error, MmsupError):
        return error
    _log.error("bug: a request ended in an error of ours", exc_info=error)
    return ServerError("internal", "an internal error; it was logged")
