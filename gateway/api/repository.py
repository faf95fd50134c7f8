"""Endpoints of the model repository: index, load, unload, and our own sleep and wake. The controller executes them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.route_table import RouteTable
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.observability.controller_status import CallController, ask_controller
from mmsup.gateway.protocol.json_document import as_object, parse_error
from mmsup.ipc.errors import CallerError, ServerError, WorkerError

LOAD_WAIT_S: Final = 300.0
"""Of a model whose versions are not known."""
READERS_LIMIT: Final = 64
"""Control requests whose bodies are being received: each may take a megabyte."""


class RepositoryApi:
    def __init__(self, routes: RouteTable, call_controller: CallController) -> None:
        self._routes = routes
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
        return response.json_response(await self._ask("index", {"ready": only_ready}), extra=request.echo_headers)

    async def load(self, request: HttpRequest) -> StreamResponse:
        """Load or reload; answers when the model is ready, or with the reason why it is not."""
        return await self._execute("load", request)

    async def unload(self, request: HttpRequest) -> StreamResponse:
        """Unload; answers when no request is routed to the model any more."""
        return await self._execute("unload", request)

    async def sleep(self, request: HttpRequest) -> StreamResponse:
        """Put a model to sleep; answers when no request is routed to its workers any more."""
        await self._no_document(request)
        result = await self._ask("sleep", {"name": request.model})
        return response.json_response(result, extra=request.echo_headers)

    async def wake(self, request: HttpRequest) -> StreamResponse:
        """Load a model that is asleep; answers when it serves, or as late as a request that waits for it would be."""
        await self._no_document(request)
        name = request.model
        limit_s = self._load_wait_s(name)
        try:
            async with asyncio.timeout(limit_s):
                result = await self._call_controller("wake", {"name": name})
        except TimeoutError:
            text = f"model '{name}' is not loaded after {limit_s:g} s, its `cold_start_timeout`; its load goes on"
            raise WorkerError("model_loading", text, model=name, retry_after_s=1) from None
        return response.json_response(result, extra=request.echo_headers)

    def _load_wait_s(self, name: str) -> float:
        versions = self._routes.model(name).versions if name in self._routes else ()
        waits_s = [each.wake_wait_s or each.spec.load_timeout_s for each in versions if each.spec is not None]
        return max(waits_s, default=LOAD_WAIT_S)

    async def _no_document(self, request: HttpRequest) -> None:
        if await self._document(request):
            raise parse_error("it takes no members")

    async def _ask(self, command: str, arguments: dict[str, Any]) -> Any:  # JSON, by command
        """The result of a command that waits for no worker."""
        return await ask_controller(self._call_controller, command, arguments)

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
