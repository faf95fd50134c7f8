"""Endpoints of the server as a whole: health, metadata, metrics, statistics of all models."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp.web_response import Response, StreamResponse

from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability import metrics, statistics
from mmsup.gateway.observability.controller_status import ControllerStatus
from mmsup.gateway.observability.host_use import HostWatch
from mmsup.gateway.observability.request_counters import RequestCounters, Totals
from mmsup.gateway.observability.slices import in_slices
from mmsup.gateway.protocol import metadata


class ServerApi:
    def __init__(self, router: Router, counters: RequestCounters, status: ControllerStatus) -> None:
        self._router = router
        self._counters = counters
        self._status = status
        self._host = HostWatch()
        self._page_lock = asyncio.Lock()
        """One page is made at a time: each takes memory meanwhile."""

    async def live(self, request: HttpRequest) -> StreamResponse:
        return response.json_response({"live": True}, extra=request.echo_headers)

    async def ready(self, request: HttpRequest) -> StreamResponse:
        ready, reason = self._router.status.readiness()
        if ready:
            return response.json_response({"ready": True, "live": True}, extra=request.echo_headers)
        document = {"ready": False, "live": True, "error": reason}
        return response.json_response(document, 503, {**request.echo_headers, "Retry-After": "1"})

    async def metrics(self, request: HttpRequest) -> StreamResponse:
        page, status = bytearray(), await self._status.get()
        async with self._page_lock:
            await in_slices(metrics.metrics_pieces(await self._totals(), status, self._host.look()), page.extend)
        return Response(body=page, headers=response.response_headers(metrics.CONTENT_TYPE, request.echo_headers))

    async def metadata(self, request: HttpRequest) -> StreamResponse:
        document = metadata.server_metadata(self._router.configuration)
        return response.json_response(document, extra=request.echo_headers)

    async def models(self, request: HttpRequest) -> StreamResponse:
        return response.json_response({"models": self._router.routes.names()}, extra=request.echo_headers)

    async def statistics(self, request: HttpRequest) -> StreamResponse:
        routes = self._router.routes
        models = [routes.model(name) for name in routes.names()]
        counters, status = self._counters, await self._status.get()
        shown: list[dict[str, Any]] = []  # JSON
        async with self._page_lock:
            rows = statistics.model_statistics(models, await self._totals(), counters.batch_totals(), status)
            await in_slices(rows, shown.append)
        return response.json_response({"model_stats": shown}, extra=request.echo_headers)

    async def _totals(self) -> Totals:
        totals: Totals = {}
        await in_slices(self._counters.rows(), lambda row: totals.__setitem__(*row))
        return totals
