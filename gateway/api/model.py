"""Endpoints of one model: metadata, readiness, configuration, statistics."""

from __future__ import annotations

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability import statistics
from mmsup.gateway.observability.controller_status import ControllerStatus
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol import metadata


class ModelApi:
    """Request handlers; CallerError for a model or version that does not exist."""

    def __init__(self, router: Router, counters: RequestCounters, status: ControllerStatus) -> None:
        self._router = router
        self._routes = router.routes
        self._counters = counters
        self._status = status

    async def metadata(self, request: HttpRequest) -> StreamResponse:
        state = await self._router.described_version(request.model, request.version)
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
