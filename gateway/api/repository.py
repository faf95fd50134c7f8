"""Endpoints of the model repository: index, load, unload. The controller executes them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability.controller_status import CallController
from mmsup.gateway.protocol.json_document import as_object, parse_error
from mmsup.ipc.errors import CallerError, ServerError

INDEX_WAIT_S: Final = 10.0
READERS_LIMIT: Final = 64
"""Control requests whose bodies are being received: each may take a megabyte."""


class RepositoryApi:
    def __init__(self, call_controller: CallController) -> None:
        self._call_controller = call_controller
        self._reading = 0

    async def _document(self, request: HttpRequest) -> dict[str, Any]:  # a JSON object
        """The body of a control request; ServerError if too many are being received."""
        if self._reading >= READERS_LIMIT:
            raise ServerError("queue_full", "too many control calls at once", retry_after_s=1)
        self._reading += 1
        try:
            return await request.read_document()
        finally:
            self._reading -= 1

    async def index(self, request: HttpRequest) -> StreamResponse:
        """All models and versions with their states; with `ready` only those that are ready."""
        document = await self._document(request)
        only_ready = document.get("ready", False)
        if not isinstance(only_ready, bool):
            raise parse_error("'ready' must be true or false")
        try:
            async with asyncio.timeout(INDEX_WAIT_S):
                rows = await self._call_controller("index", {"ready": only_ready})
        except TimeoutError:
            raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=2) from None
        return response.json_response(rows, extra=request.echo_headers)

    async def load(self, request: HttpRequest) -> StreamResponse:
        """Load or reload; answers when the model is ready, or with the reason why it is not."""
        return await self._execute("load", request)

    async def unload(self, request: HttpRequest) -> StreamResponse:
        """Unload; answers when no request is routed to the model any more."""
        return await self._execute("unload", request)

    async def _execute(self, command: str, request: HttpRequest) -> StreamResponse:
        parameters = _parameters(request, await self._document(request))
        await self._call_controller(command, {"name": request.model, **parameters})
        return response.empty_response(request.echo_headers)


def _parameters(request: HttpRequest, document: dict[str, Any]) -> dict[str, Any]:  # JSON
    """The `parameters` of a load or unload, as an argument only if there are any; the controller checks them."""
    value = document.get("parameters")
    parameters = {} if value is None else as_object(value)
    if parameters is None or not all(isinstance(each, str | int | float | bool) for each in parameters.values()):
        raise parse_error("'parameters' must be an object of scalars")
    files = [key for key in parameters if key.startswith("file:")]
    if files:
        text = f"failed to load '{request.model}': files may not be sent to this server"
        raise CallerError("forbidden", text, model=request.model)
    return {"parameters": parameters} if parameters else {}
