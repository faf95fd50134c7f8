"""Endpoints that say what the server serves: the page at `/`, and `/openapi.json`."""

from __future__ import annotations

import re
from typing import Final

import orjson
from aiohttp.web_response import Response, StreamResponse

from mmsup.gateway.api.description import openapi, overview
from mmsup.gateway.api.description.operations import HTML, JSON
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")
DEFAULT_HOST: Final = "localhost:8000"
_NO_RESOURCES: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


class DescriptionApi:
    def __init__(self, router: Router) -> None:
        self._router = router
        self._openapi = b""
        """Made at the first request for it."""

    async def page(self, request: HttpRequest) -> StreamResponse:
        routes, configuration = self._router.routes, self._router.configuration
        names = routes.names()
        models = [routes.model(each) for each in names[: overview.MODELS_LIMIT]]
        given = request.raw.headers.get("Host", "")
        host = given if _HOST.fullmatch(given) else DEFAULT_HOST
        more = len(names) - len(models)
        shown = overview.overview(configuration.server_name, configuration.server_version, models, more, host)
        media = overview.media_type(request.raw.headers.get("Accept", ""))
        headers = {**request.echo_headers, "Vary": "Accept"}
        if media == JSON:
            return response.json_response(shown, extra=headers)
        if media == HTML:
            headers["Content-Security-Policy"] = _NO_RESOURCES
        text = overview.as_page(shown) if media == HTML else overview.as_text(shown)
        return Response(body=text.encode(), headers=response.response_headers(f"{media}; charset=utf-8", headers))

    async def openapi(self, request: HttpRequest) -> StreamResponse:
        if not self._openapi:
            self._openapi = orjson.dumps(openapi.description(self._router.configuration.server_version))
        return Response(body=self._openapi, headers=response.response_headers(response.JSON, request.echo_headers))
