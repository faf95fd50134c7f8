"""Endpoints of what may be set while the server runs: log lines and traces. The controller holds and checks it."""

from __future__ import annotations

from typing import Any

from aiohttp.web_response import StreamResponse

from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability.controller_status import CallController, ask_controller


class SettingsApi:
    def __init__(self, call_controller: CallController) -> None:
        self._call_controller = call_controller

    async def log(self, request: HttpRequest) -> StreamResponse:
        return await self._settings(request, "log_settings", {})

    async def set_log(self, request: HttpRequest) -> StreamResponse:
        return await self._settings(request, "log_settings", {"settings": await request.read_document()})

    async def trace(self, request: HttpRequest) -> StreamResponse:
        return await self._settings(request, "trace_settings", _model(request))

    async def set_trace(self, request: HttpRequest) -> StreamResponse:
        document = await request.read_document()
        return await self._settings(request, "trace_settings", {**_model(request), "settings": document})

    async def _settings(self, request: HttpRequest, command: str, arguments: dict[str, Any]) -> StreamResponse:  # JSON
        shown = await ask_controller(self._call_controller, command, arguments)
        return response.json_response(shown, extra=request.echo_headers)


def _model(request: HttpRequest) -> dict[str, Any]:  # as above
    name = request.path_names.get("model", "")
    return {"name": name} if name else {}
