"""Endpoints of the model repository: index, load, unload, and our own sleep and wake. The controller executes them."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.api.load_document import load_document
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.controller_status import CallController, ask_controller, change_model
from mmsup.gateway.protocol.control_calls import load_request
from mmsup.gateway.protocol.json_document import as_object, parse_error
from mmsup.ipc.errors import ServerError, WorkerError

LOAD_WAIT_S: Final = 300.0
"""Of a model whose versions are not known."""
READERS_LIMIT: Final = 64
"""Control requests whose bodies are being received: each may take a megabyte."""


class RepositoryApi:
    def __init__(self, inference: InferHandler, call_controller: CallController) -> None:
        self._router = inference.router
        self._routes = inference.router.routes
        self._parser_executor = inference.parser_executor
        self._call_controller = call_controller
        self._reading = 0
        self._uploading = asyncio.Lock()

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
        parameters = _parameters(await self._load_document(request))
        parsed = load_request(request.model, parameters, self._router.configuration)
        arguments = {"name": request.model, **({"parameters": parsed.parameters} if parsed.parameters else {})}
        await change_model(self._call_controller, command, arguments, parsed.files)
        return response.empty_response(request.echo_headers)

    async def _load_document(self, request: HttpRequest) -> dict[str, Any]:  # a JSON object
        """As `_document`; where files may come, one that is large too, of which one at a time is received."""
        configuration, size = self._router.configuration, request.raw.content_length
        if not configuration.allow_model_uploads or (size is not None and size <= request_body.DOCUMENT_LIMIT_BYTES):
            return await self._document(request)
        if self._uploading.locked():
            raise ServerError("queue_full", "another model is being sent to this server", retry_after_s=1)
        async with self._uploading:
            body = await request.read_control_body(configuration.max_body_bytes)
            return await asyncio.get_running_loop().run_in_executor(self._parser_executor, load_document, body)


def _parameters(document: dict[str, Any]) -> dict[str, Any]:  # JSON
    """The `parameters` of a load or unload."""
    value = document.get("parameters")
    parameters = {} if value is None else as_object(value)
    if parameters is None or not all(
        isinstance(each, str | int | float | bool | bytes) for each in parameters.values()
    ):
        raise parse_error("'parameters' must be an object of scalars")
    return parameters
