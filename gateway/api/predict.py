"""Endpoints of KServe's first protocol: `GET /v1/models/NAME` and `POST /v1/models/NAME:predict`.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import TypeVar

from aiohttp.web_response import StreamResponse

from mmsup.gateway.api import predictions
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.early_body import EarlyBody
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import infer_request, infer_response, json_document, metadata
from mmsup.gateway.protocol.binary_tensors import JSON_LIMIT_BYTES, Blobs
from mmsup.gateway.protocol.inference_job import InferenceResult

T = TypeVar("T")


class PredictApi:
    def __init__(self, inference: InferHandler) -> None:
        self._inference = inference

    async def model(self, request: HttpRequest) -> StreamResponse:
        state = self._inference.router.routes.version(request.model, "")
        ready, shown = metadata.readiness_document(request.model, state)
        document = {"name": request.model, "ready": ready}
        if ready:
            return response.json_response(document, extra=request.echo_headers)
        headers = {**request.echo_headers, "Retry-After": "1"}
        return response.json_response({**document, "error": shown["error"]}, 503, headers)

    async def predict(self, request: HttpRequest) -> StreamResponse:
        timer = RequestTimer(self._inference.counters, request.model, "")
        try:
            return await self._predict(request, timer)
        except BaseException as error:
            timer.fail(error)
            raise

    async def _predict(self, request: HttpRequest, timer: RequestTimer) -> StreamResponse:
        router = self._inference.router
        limit = min(router.configuration.max_body_bytes, JSON_LIMIT_BYTES)
        size = request_body.check_head(request.raw, limit)
        early = EarlyBody(request, size, timer.started_ns)
        with closing(await router.open(request.model, "", None, early)) as dispatched:
            timer.version = dispatched.spec.version
            body = early.body
            if body is None:
                await request_body.send_continue(request.raw)
                body = await request_body.read_all(request.raw, limit, dispatched.reserve_bytes)
            await dispatched.allocate(0)  # its tensors have data of their own
            parsed, rows = await self._done(len(body), partial(_parse, request.model, dispatched, body))
            dispatched.request_id = request.request_id
            handler.apply_timeout(dispatched, parsed, timer)
            result = await dispatched.resume(parsed.job, None)
            read_bytes = sum(len(each.data) for each in result.outputs)
            text = await self._done(read_bytes, partial(_predictions, dispatched, parsed, result, rows))
            timer.finish(result.reply, parsed.inference_count)
        built = infer_response.InferResponse(text, None)
        return await response.send_inference(request.raw, built, request.echo_headers, last=router.status.retired)

    async def _done(self, size: int, work: Callable[[], T]) -> T:
        """The result of work on so many bytes, in the other thread if they are many."""
        if size <= request_body.THREAD_PARSE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._inference.parser_executor, work)


def _parse(model: str, dispatched: DispatchedRequest, body: bytearray) -> tuple[ParsedRequest, int]:
    described = dispatched.metadata
    document, rows = predictions.infer_document(json_document.parse_json(memoryview(body)), model, described)
    blobs = Blobs(memoryview(b""), 0, 0)
    return ParsedRequest(infer_request.parse_request(document, model, described, blobs), described), rows


def _predictions(dispatched: DispatchedRequest, parsed: ParsedRequest, result: InferenceResult, rows: int) -> bytes:
    context = handler.response_context(dispatched, parsed)
    outputs = infer_response.wanted_tensors(context, parsed.request.outputs, result.outputs)
    return predictions.predictions(context.model, outputs, rows)
