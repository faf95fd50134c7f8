"""Endpoints of one model: metadata, readiness, configuration, statistics."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability import statistics
from mmsup.gateway.observability.controller_status import ControllerStatus
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol import metadata
from mmsup.gateway.waking.request_wait import RequestWait

METADATA_WAIT_NS: Final = 60_000_000_000
"""For a worker that is not there, beside the time that it takes to load."""


class ModelApi:
    """Request handlers; CallerError for a model or version that does not exist."""

    def __init__(self, router: Router, counters: RequestCounters, status: ControllerStatus) -> None:
        self._router = router
        self._routes = router.routes
        self._counters = counters
        self._status = status

    async def metadata(self, request: HttpRequest) -> StreamResponse:
        state = self._routes.version(request.model, request.version)
        if state.metadata is None and state.wake_wait_s:  # only its worker can tell: load it, as a request would
            wait = RequestWait(time.monotonic_ns() + METADATA_WAIT_NS)
            link = await self._router.acquire(request.model, request.version, wait)
            state = replace(state, metadata=link.metadata)
        document = metadata.model_metadata(self._routes.model(request.model), state)
        return response.json_response(document, extra=request.echo_headers)

    async def ready(self, request: HttpRequest) -> StreamResponse:
        state = self._routes.version(request.model, request.version)
        ready, document = metadata.readiness_document(request.model, state)
        if ready:
            return response.json_response(document, extra=request.echo_headers)
        return response.json_response(document, 503, {**request.echo_headers, "Retry-After": "1"})

    async def config(self, request: HttpRequest) -> StreamResponse:
        state = self._routes.version(request.model, request.version)
        document = metadata.model_config(self._routes.model(request.model), state)
        return response.json_response(document, extra=request.echo_headers)

    async def statistics(self, request: HttpRequest) -> StreamResponse:
        routes = self._routes
        version = routes.version(request.model, request.version).version if request.version else ""
        models = [routes.model(request.model)]
        counters, status = self._counters, await self._status.get()
        totals = dict(counters.rows(request.model))
        rows = statistics.model_statistics(models, totals, counters.batch_totals(), status, version)
        return response.json_response({"model_stats": list(rows)}, extra=request.echo_headers)
