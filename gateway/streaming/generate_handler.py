"""`POST …/generate` and `…/generate_stream`: one JSON object in, one out, or as many events as the model answers.

A fault before the first event is a response with its status; after it, it is the last event. A client that leaves
cancels its request: aiohttp cancels the handler, and closing the request tells the worker.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from functools import partial
from typing import Any

from aiohttp.web_response import Response, StreamResponse

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.http import error_status, request_body, response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.early_body import EarlyBody
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import binary_tensors, infer_request, json_document
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.gateway.streaming import generate_document
from mmsup.gateway.streaming.event_stream import EventStream
from mmsup.gateway.streaming.response_stream import ResponseStream, SingleResponse


class _Generation:
    """One request that is open and parsed."""

    def __init__(
        self, inference: InferHandler, dispatched: DispatchedRequest, parsed: ParsedRequest, timer: RequestTimer
    ) -> None:
        self._executor = inference.parser_executor
        self._dispatched = dispatched
        self._parsed = parsed
        self._timer = timer
        self.responses: ResponseStream | SingleResponse
        if dispatched.metadata.decoupled:
            self.responses = ResponseStream(dispatched, parsed.job, inference.router, timer)
        else:
            self.responses = SingleResponse(partial(inference.infer, dispatched, parsed, None))

    async def next(self) -> bytes | None:
        """The next response as JSON, None after the last."""
        result = await self.responses.next()
        if result is None:
            return None
        if sum(len(each.data) for each in result.outputs) <= request_body.THREAD_PARSE_BYTES:
            return self._document(result)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._document, result)

    def _document(self, result: InferenceResult) -> bytes:
        context = handler.response_context(self._dispatched, self._parsed)
        return generate_document.response_document(context, self._parsed.request.outputs, result.outputs)

    def finish(self) -> None:
        """All responses have been sent."""
        self._timer.finish(self.responses.last_reply, self._parsed.inference_count)


class GenerateHandler:
    def __init__(self, inference: InferHandler) -> None:
        self._inference = inference
        self._router = inference.router

    async def generate(self, call: HttpRequest) -> StreamResponse:
        timer = RequestTimer(self._inference.counters, call.model, call.version)
        try:
            early = self._early_body(call, timer)
            with closing(await self._router.open(call.model, call.version, None, early)) as dispatched:
                generation = await self._begin(call, dispatched, timer, early)
                body = await generation.next()
                if body is None or await generation.next() is not None:
                    raise generate_document.error_of_count(call.model)
                generation.finish()
                return Response(body=body, headers=response.response_headers(response.JSON, call.echo_headers))
        except BaseException as error:
            timer.fail(error)
            raise

    async def generate_stream(self, call: HttpRequest) -> StreamResponse:
        timer = RequestTimer(self._inference.counters, call.model, call.version)
        try:
            early = self._early_body(call, timer)
            with closing(await self._router.open(call.model, call.version, None, early)) as dispatched:
                generation = await self._begin(call, dispatched, timer, early)
                return await self._send_events(call, generation, timer)
        except BaseException as error:
            timer.fail(error)
            raise

    async def _send_events(self, call: HttpRequest, generation: _Generation, timer: RequestTimer) -> StreamResponse:
        events = EventStream(call.raw, call.echo_headers, is_last=self._router.status.retired)
        try:
            while (document := await generation.next()) is not None:
                await events.send(document)
        except BaseException as error:
            generation.responses.record_end(error)
            if not events.is_started or not isinstance(error, Exception):
                raise
            timer.fail(error)
            shown = handler.client_error(error)
            if shown.code != "cancelled":
                await events.send(error_status.body(shown, call.request_id))
            return await events.finish()
        generation.finish()
        return await events.finish()

    def _early_body(self, call: HttpRequest, timer: RequestTimer) -> EarlyBody:
        size = request_body.check_head(call.raw, self._router.configuration.max_body_bytes)
        return EarlyBody(call, size, timer.started_ns)

    async def _begin(
        self, call: HttpRequest, dispatched: DispatchedRequest, timer: RequestTimer, early: EarlyBody
    ) -> _Generation:
        """Receive and parse the body."""
        timer.version = dispatched.spec.version
        body = early.body
        if body is None:
            await request_body.send_continue(call.raw)
            limit = min(self._router.configuration.max_body_bytes, binary_tensors.JSON_LIMIT_BYTES)
            body = await request_body.read_all(call.raw, limit, dispatched.reserve_bytes)
        await dispatched.allocate(0)
        arguments = call, dispatched, bytes(body)
        if len(body) <= request_body.THREAD_PARSE_BYTES:
            parsed = _parse(*arguments)
        else:
            loop = asyncio.get_running_loop()
            parsed = await loop.run_in_executor(self._inference.parser_executor, _parse, *arguments)
        dispatched.request_id = call.request_id
        handler.apply_timeout(dispatched, parsed, timer)
        return _Generation(self._inference, dispatched, parsed, timer)


def _parse(call: HttpRequest, dispatched: DispatchedRequest, body: bytes) -> ParsedRequest:
    """May run in another thread: it changes nothing but the client's own id."""
    metadata, value = dispatched.metadata, json_document.parse_json(body)
    document: dict[str, Any] = generate_document.infer_document(value, call.model, metadata)  # a JSON object
    call.request_id = infer_request.request_id(document) or call.request_id
    blobs = Blobs(memoryview(b""), 0, 0)
    request = infer_request.parse_request(document, call.model, metadata, blobs, may_stream=True)
    return ParsedRequest(request, metadata)
