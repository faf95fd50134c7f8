"""The HTTP application: dispatches each request that aiohttp serves to the handler of its endpoint.

Every exception becomes an error response here; bugs are logged here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from mmsup.gateway.api.description.description_api import DescriptionApi
from mmsup.gateway.api.memory import MemoryApi
from mmsup.gateway.api.model import ModelApi
from mmsup.gateway.api.predict import PredictApi
from mmsup.gateway.api.repository import RepositoryApi
from mmsup.gateway.api.server import ServerApi
from mmsup.gateway.api.settings import SettingsApi
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.http.url_routes import HTTP_ROUTES, Access, match_path
from mmsup.gateway.infer.fair_queue import SERVER_FLOW, UNKNOWN_FLOW
from mmsup.gateway.infer.handler import InferHandler, client_error
from mmsup.gateway.observability.controller_status import CallController, ControllerStatus
from mmsup.gateway.streaming.generate_handler import GenerateHandler
from mmsup.ipc.errors import CallerError, MmsupError

_NOT_SERVED: Final = {
    "other_repository": "a repository cannot be named in the path: leave it out",
}
AIOHTTP_COST: Final = 4
"""Cost, in the fair queue, of a request that aiohttp serves."""
Handler = Callable[[HttpRequest], Awaitable[StreamResponse]]


class HttpApp:
    """`serve` and `serve_metrics` are the handlers of the listeners."""

    def __init__(self, inference: InferHandler, call_controller: CallController) -> None:
        self._router = router = inference.router
        self._fair_queue = inference.fair_queue
        status = ControllerStatus(call_controller)
        server = ServerApi(router, inference.counters, status)
        model = ModelApi(router, inference.counters, status)
        memory = MemoryApi(inference.regions)
        generation = GenerateHandler(inference)
        repository = RepositoryApi(inference, call_controller)
        settings = SettingsApi(call_controller)
        description = DescriptionApi(router)
        predict = PredictApi(inference)
        self._handlers: dict[str, Handler] = {
            "page": description.page,
            "openapi": description.openapi,
            "live": server.live,
            "ready": server.ready,
            "metrics": server.metrics,
            "server": server.metadata,
            "models": server.models,
            "all_stats": server.statistics,
            "model": model.metadata,
            "model_ready": model.ready,
            "model_config": model.config,
            "model_stats": model.statistics,
            "infer": inference.handle,
            "generate": generation.generate,
            "generate_stream": generation.generate_stream,
            "v1_model": predict.model,
            "predict": predict.predict,
            "index": repository.index,
            "load": repository.load,
            "unload": repository.unload,
            "sleep": repository.sleep,
            "wake": repository.wake,
            "system_status": memory.system_status,
            "system_register": memory.system_register,
            "system_unregister": memory.system_unregister,
            "cuda_status": memory.cuda_status,
            "cuda_register": memory.cuda_register,
            "cuda_unregister": memory.cuda_unregister,
            "log": settings.log,
            "set_log": settings.set_log,
            "trace": settings.trace,
            "set_trace": settings.set_trace,
        }
        actions = {each.action for each in HTTP_ROUTES}
        assert {*self._handlers, *_NOT_SERVED} == actions, "an endpoint has no handler, or the reverse"

    async def serve(self, request: BaseRequest) -> StreamResponse:
        return await self._serve(HttpRequest(request), only=None)

    async def serve_metrics(self, request: BaseRequest) -> StreamResponse:
        """For a listener that serves /metrics and nothing else."""
        return await self._serve(HttpRequest(request), only="metrics")

    async def _serve(self, request: HttpRequest, only: str | None) -> StreamResponse:
        try:
            made = await self._dispatch(request, only)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request: the client gets its answer
            made = _error_response(request, client_error(error))
        if (self._router.status.retired or "Upgrade" in request.raw.headers) and not made.prepared:
            made.force_close()
        return made

    async def _dispatch(self, request: HttpRequest, only: str | None) -> StreamResponse:
        method = request.raw.method
        match = match_path(request.raw.raw_path)
        flow = match.names.get("model", SERVER_FLOW) if match else UNKNOWN_FLOW
        await self._fair_queue.wait_to_start(flow, AIOHTTP_COST)
        request.check_host()
        if match is None or (only is not None and all(each.action != only for each in match.methods.values())):
            raise CallerError("unknown_path", "there is nothing at this path")
        if method == "OPTIONS":
            return response.empty_response({**request.echo_headers, "Allow": match.allow})
        route = match.methods.get(method)
        if route is None:
            hint = ": send a POST (`curl -X POST`)" if method == "GET" and "POST" in match.methods else ""
            error = CallerError("method_not_allowed", f"this path has {match.allow}{hint}")
            refused = response.error_response(error, request.request_id)
            refused.headers["Allow"] = match.allow
            return refused
        request.path_names = match.names
        if route.access is Access.CONTROL:
            request.check_change()
        elif route.access is Access.MEMORY:
            request.check_origin()
        if route.action in _NOT_SERVED:
            raise CallerError("not_implemented", _NOT_SERVED[route.action])
        return await self._handlers[route.action](request)


def _error_response(request: HttpRequest, error: MmsupError) -> StreamResponse:
    transport = request.raw.transport
    if request.raw.writer.output_size > 0 and transport is not None:
        transport.abort()  # a part of the response was sent: the client must not take what follows for the rest
    return response.error_response(error, request.request_id, request.echo_headers)
