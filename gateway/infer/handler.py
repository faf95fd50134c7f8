"""`POST .../infer`: receives the body into the memory that the model reads, dispatches it, and builds the response.

The head is checked before anything is allocated, a worker is found before the body is received, the body goes to where
the model will read it, and only then is it parsed. Each request is counted once, whatever its outcome.

`InferHandler.handle` serves the requests that aiohttp reads and writes, fast_handler.py those of fast connections; both
use the functions here.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from aiohttp.web_response import StreamResponse

from mmsup.gateway.caching.cached_inference import CachedInference
from mmsup.gateway.client_memory.region_table import RegionTable, make_region_table
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.infer import class_labels
from mmsup.gateway.infer.early_body import EarlyBody
from mmsup.gateway.infer.fair_queue import FairQueue
from mmsup.gateway.infer.region_tensors import RegionTensors
from mmsup.gateway.observability.request_counters import RequestCounters, RequestTimer
from mmsup.gateway.protocol import binary_tensors, infer_request, infer_response, json_document
from mmsup.gateway.protocol.binary_tensors import BodyLayout
from mmsup.gateway.protocol.infer_request import InferRequest
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult
from mmsup.gateway.sequences.sequence_router import SequenceRouter
from mmsup.gateway.sequences.sequence_turns import Turn
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.specs import ENSEMBLE, Metadata

_log = logging.getLogger("mmsup.gateway")


class RequestIdentity(Protocol):
    """What the parser needs of an HTTP request: its model, and where to store the client's own id of it."""

    request_id: str

    @property
    def model(self) -> str: ...


class ParsedRequest:
    """A parsed request: the job for the model and the form of the response."""

    __slots__ = ("inference_count", "is_cacheable", "job", "metadata", "request", "uses_regions")

    def __init__(self, request: InferRequest, metadata: Metadata) -> None:
        names = [each.spec.name for each in request.outputs]
        wants_all = names == [each.name for each in metadata.outputs]
        self.request = request
        self.metadata = metadata
        self.job = InferenceJob(request.inputs, () if wants_all else names, request.parameters, request.priority)
        self.inference_count = request.inputs[0].shape[0] if metadata.max_batch_size and request.inputs else 1
        """How many inferences it counts as: the size of its own batch."""
        self.uses_regions = request.uses_regions
        self.is_cacheable = not request.uses_regions and request.sequence is None
        """Whether requests like it may be known ones, and it may be sent at once."""

    def without_data(self, job: InferenceJob) -> ParsedRequest:
        """A copy for a cache, without the client's tensors. `job`: the job without them."""
        copy = self.with_job(job)
        copy.request = replace(self.request, inputs=[])
        return copy

    def with_job(self, job: InferenceJob, json_id: str = "") -> ParsedRequest:
        """A copy with another job of the same shapes, and another id if one is given."""
        copy = ParsedRequest.__new__(ParsedRequest)
        copy.request, copy.metadata, copy.inference_count = self.request, self.metadata, self.inference_count
        copy.uses_regions, copy.is_cacheable = self.uses_regions, self.is_cacheable
        copy.job = job
        if json_id:
            copy.request = replace(self.request, id=json_id)
        return copy


class InferHandler:
    """What both ways of serving share. `parser_executor`: one thread for bodies that take long to parse."""

    def __init__(
        self,
        router: Router,
        counters: RequestCounters,
        parser_executor: Executor,
        regions: RegionTable | None = None,
    ) -> None:
        self.router = router
        self.regions = regions or make_region_table(router.configuration)
        """Memory that clients share with the server."""
        self.counters = counters
        self.fair_queue = FairQueue(router.routes)
        self.parser_executor = parser_executor
        self.sequences = SequenceRouter(router)
        self.cached = CachedInference(router, counters, parser_executor)

    async def handle(self, call: HttpRequest) -> StreamResponse:
        timer = RequestTimer(self.counters, call.model, call.version)
        try:
            return await self._serve(call, timer)
        except BaseException as error:
            timer.fail(error)
            raise

    async def _serve(self, call: HttpRequest, timer: RequestTimer) -> StreamResponse:
        size = request_body.check_head(call.raw, self.router.configuration.max_body_bytes)
        early = EarlyBody(call, size, timer.started_ns)
        with closing(await self.router.open(call.model, call.version, None, early)) as dispatched:
            timer.version = dispatched.spec.version
            parsed = await self._read_body(call, dispatched, size, early.body)
            dispatched.request_id = call.request_id
            apply_timeout(dispatched, parsed, timer)
            if parsed.uses_regions:
                built = await self.serve_regions(dispatched, parsed, timer, is_local=call.is_local)
            else:
                built = await self.finish(dispatched, parsed, timer, None)
            is_last = self.router.status.retired
            return await response.send_inference(call.raw, built, call.echo_headers, last=is_last)

    async def _read_body(
        self, call: HttpRequest, dispatched: DispatchedRequest, size: int | None, body: bytearray | None
    ) -> ParsedRequest:
        """Receive the body, unless `body` is it, and parse it."""
        request = call.raw
        headers = request.headers.getall(binary_tensors.HEADER, [])
        if len(headers) > 1:
            raise CallerError("bad_request", f"{binary_tensors.HEADER} is given {len(headers)} times", model=call.model)
        header = headers[0] if headers else None
        if size is None:
            await request_body.send_continue(request)
            limit = self.router.configuration.max_body_bytes
            limit = min(limit, binary_tensors.JSON_LIMIT_BYTES) if header is None else limit
            body = await request_body.read_all(request, limit, dispatched.reserve_bytes)
        if body is not None:
            layout = binary_tensors.body_layout(header, len(body))
            buffer = await dispatched.allocate(layout.space)
            await request_body.copy_in_steps(body, buffer[layout.start : layout.space])
        else:
            assert size is not None, "a body of unknown length was read in full"
            layout = binary_tensors.body_layout(header, size)
            buffer = await dispatched.allocate(layout.space)
            await request_body.send_continue(request)
            await request_body.read_into(request, buffer[layout.start : layout.space])
        if not is_slow_to_parse(layout, dispatched.metadata):
            return parse_request(call, dispatched.metadata, buffer, layout)
        arguments = call, dispatched.metadata, buffer, layout
        return await asyncio.get_running_loop().run_in_executor(self.parser_executor, parse_request, *arguments)

    async def finish(
        self, dispatched: DispatchedRequest, parsed: ParsedRequest, timer: RequestTimer, event: RequestEvent | None
    ) -> infer_response.InferResponse:
        """The response. `event`: what has come since the request was sent; None if it is still to be sent."""
        result = await self.infer(dispatched, parsed, event)
        return await self._build(dispatched, parsed, timer, result)

    async def serve_regions(
        self, dispatched: DispatchedRequest, parsed: ParsedRequest, timer: RequestTimer, *, is_local: bool
    ) -> infer_response.InferResponse:
        """The response of a request with tensors in memory of its client, which was not sent yet."""
        result = await self.infer_with_regions(dispatched, parsed, is_local=is_local)
        return await self._build(dispatched, parsed, timer, result)

    async def infer_with_regions(
        self, dispatched: DispatchedRequest, parsed: ParsedRequest, turn: Turn | None = None, *, is_local: bool
    ) -> InferenceResult:
        """Copy the inputs in, run it, and copy the outputs out."""
        model = dispatched.spec.name
        with closing(RegionTensors(self.regions, parsed.request, model, is_local=is_local)) as tensors:
            parsed.job.regions = tensors.device_regions(is_ensemble=dispatched.spec.engine == ENSEMBLE)
            dispatched.reserve_bytes(sum([each.size for each in parsed.job.regions if each.place >= 0]))
            await tensors.copy_in(dispatched, self.parser_executor)
            result = await self.infer(dispatched, parsed, None, turn)
            await tensors.copy_out(result)
        return result

    async def _build(
        self, dispatched: DispatchedRequest, parsed: ParsedRequest, timer: RequestTimer, result: InferenceResult
    ) -> infer_response.InferResponse:
        built = build_response(dispatched, parsed, result)
        if built is None:
            loop = asyncio.get_running_loop()
            built = await loop.run_in_executor(self.parser_executor, _build_slow_response, dispatched, parsed, result)
        timer.finish(result.reply, parsed.inference_count)
        return built

    async def infer(
        self, dispatched: DispatchedRequest, parsed: ParsedRequest, event: RequestEvent | None, turn: Turn | None = None
    ) -> InferenceResult:
        """The result of a request, waiting for what must be waited for."""
        flags, job = parsed.request.sequence, parsed.job
        if flags is not None and dispatched.spec.sequences is not None:
            return await self.sequences.infer(dispatched, job, flags, turn)
        if flags is not None:  # for a step of an ensemble, or a class that asks for it
            job = replace(job, parameters={**job.parameters, **flags.parameters()}, signature=b"")
        if dispatched.spec.response_cache and parsed.is_cacheable and event is None:
            return await self.cached.infer(dispatched, job)
        return await dispatched.resume(job, event)


def apply_timeout(dispatched: DispatchedRequest, parsed: ParsedRequest, timer: RequestTimer) -> None:
    """Bring the deadline forward to the request's own timeout, which counts from the arrival of its head."""
    if parsed.request.timeout_us:
        dispatched.client_deadline_ns = timer.started_ns + parsed.request.timeout_us * 1000
        dispatched.deadline_ns = min(dispatched.deadline_ns, dispatched.client_deadline_ns)


def is_slow_to_parse(layout: BodyLayout, metadata: Metadata) -> bool:
    if layout.size <= request_body.THREAD_PARSE_BYTES:
        return False
    if layout.header > request_body.THREAD_PARSE_BYTES:
        return True
    if layout.size - layout.header <= request_body.THREAD_PARSE_BYTES or not layout.header:
        return False
    return any(each.datatype == "BYTES" for each in metadata.inputs)


def parse_request(
    identity: RequestIdentity, metadata: Metadata, buffer: memoryview, layout: BodyLayout
) -> ParsedRequest:
    """Parse the body in `buffer`. May run in another thread: it changes nothing but the client's own id."""
    if layout.start and not layout.header:
        tensor = binary_tensors.raw_input(identity.model, metadata, buffer, layout)
        return ParsedRequest(infer_request.parse_raw_request(tensor, identity.model, metadata), metadata)
    value = json_document.parse_json(buffer[layout.start : layout.blobs_start])
    identity.request_id = infer_request.request_id(value) or identity.request_id
    blobs = binary_tensors.Blobs(buffer, layout.blobs_start, layout.space)
    return ParsedRequest(infer_request.parse_request(value, identity.model, metadata, blobs), metadata)


def build_response(
    dispatched: DispatchedRequest, parsed: ParsedRequest, result: InferenceResult
) -> infer_response.InferResponse | None:
    """The response, or None if building it takes long or reads a file."""
    outputs = parsed.request.outputs
    if any(each.classes for each in outputs):
        return None
    binary_names = {each.spec.name for each in outputs if each.binary or each.region is not None}
    read_bytes = sum(
        len(each.data) for each in result.outputs if each.datatype == "BYTES" or each.name not in binary_names
    )
    if read_bytes > request_body.THREAD_PARSE_BYTES:
        return None
    return infer_response.build_response(response_context(dispatched, parsed), outputs, result.outputs)


def _build_slow_response(
    dispatched: DispatchedRequest, parsed: ParsedRequest, result: InferenceResult
) -> infer_response.InferResponse:
    context = response_context(dispatched, parsed, read_labels=True)
    return infer_response.build_response(context, parsed.request.outputs, result.outputs)


def response_context(
    dispatched: DispatchedRequest, parsed: ParsedRequest, *, read_labels: bool = False
) -> infer_response.ResponseContext:
    """`read_labels` where outputs are wanted as classifications: their labels may have to be read from a file."""
    spec, is_batched = dispatched.spec, dispatched.metadata.max_batch_size > 0
    labels: dict[str, list[str]] = {}
    if read_labels and any(each.classes for each in parsed.request.outputs):
        labels = {name: list(each) for name, each in dispatched.metadata.labels.items()}
        labels |= class_labels.read_labels(spec)
    return infer_response.ResponseContext(spec.name, spec.version, parsed.request.id, is_batched, labels)


def client_error(error: Exception) -> MmsupError:
    """The error that the client gets for an exception. A bug of ours is logged with its traceback."""
    if isinstance(error, MmsupError):
        return error
    _log.error("bug: a request ended in an error of ours", exc_info=error)
    return ServerError("internal", "an internal error; it was logged")
