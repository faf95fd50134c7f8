"""The HTTP application: each endpoint of the table to the method that answers it.

This is the gateway's outermost loop for a request: every error becomes its reply here, a bug of ours is logged here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse

from mmsup.gateway.api.repository import RepositoryApi
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.http.url_routes import HTTP_ROUTES, Access, HttpRoute, match_path
from mmsup.gateway.infer.fair_queue import SERVER_FLOW, UNKNOWN_FLOW
from mmsup.gateway.infer.handler import InferHandler, client_error
from mmsup.gateway.observability import metrics, statistics
from mmsup.gateway.observability.controller_status import ControllerStatus
from mmsup.gateway.protocol import metadata
from mmsup.ipc.errors import CallerError, MmsupError

_NOT_SERVED: Final = {
    "no_generate": "generate is not served yet: use infer",
    "no_logging": "log settings cannot be changed while the server runs: use --log-verbose and --log-format",
    "no_trace": "tracing is not served yet",
    "no_region": "client shared memory is not served: send tensors as binary data",
    "no_register": "client shared memory is not served: send tensors as binary data",
    "other_repository": "a repository cannot be named in the path: leave it out",
}
AIOHTTP_COST: Final = 4
"""What a request that aiohttp serves counts for where requests take turns."""
Handler = Callable[[HttpRequest], Awaitable[StreamResponse]]


class HttpApp:
    """What a listener hands each request to."""

    def __init__(self, inference: InferHandler) -> None:
        backend = inference.router
        self._backend = backend
        self._counting = inference.counters
        self._turns = inference.fair_queue
        self._facts = ControllerStatus(backend)
        repository = RepositoryApi(backend)
        self._handlers: dict[str, Handler] = {
            "live": self._live,
            "ready": self._ready,
            "metrics": self._metrics,
            "server": self._server,
            "models": self._models,
            "model": self._model,
            "model_ready": self._model_ready,
            "model_config": self._model_config,
            "model_stats": self._model_stats,
            "all_stats": self._all_stats,
            "infer": inference.handle,
            "index": repository.index,
            "load": repository.load,
            "unload": repository.unload,
            "no_regions": self._no_regions,
            "unregister": self._unregister,
            **dict.fromkeys(_NOT_SERVED, self._not_served),
        }
        assert self._handlers.keys() == {each.action for each in HTTP_ROUTES}, (
            "an endpoint has no handler, or the reverse"
        )

    async def serve(self, request: BaseRequest) -> StreamResponse:
        """The reply to any request of the API's listeners."""
        return await self._serve(HttpRequest(request), only=None)

    async def serve_metrics(self, request: BaseRequest) -> StreamResponse:
        """The reply to any request of a listener that has metrics and nothing else."""
        return await self._serve(HttpRequest(request), only="metrics")

    async def _serve(self, call: HttpRequest, only: str | None) -> StreamResponse:
        try:
            made = await self._dispatch(call, only)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request: the client has its answer
            made = self._error_response(call, client_error(error))
        if self._backend.retired and not made.prepared:
            made.force_close()
        return made

    def _error_response(self, call: HttpRequest, error: MmsupError) -> StreamResponse:
        transport = call.request.transport
        if call.request.writer.output_size > 0 and transport is not None:
            transport.abort()  # half a reply went out: the client must not take what follows for the rest
        return response.error_response(error, call.request_id, call.echo_headers)

    async def _dispatch(self, call: HttpRequest, only: str | None) -> StreamResponse:
        request = call.request
        match = match_path(request.raw_path)
        await self._turns.wait_to_start(match.names.get("model", SERVER_FLOW) if match else UNKNOWN_FLOW, AIOHTTP_COST)
        if match is None or (only is not None and all(each.action != only for each in match.methods.values())):
            raise CallerError("unknown_path", "there is nothing at this path")
        if request.method == "OPTIONS":
            return response.empty_response({**call.echo_headers, "Allow": match.allow})
        endpoint = match.methods.get(request.method)
        if endpoint is None:
            refused = response.error_response(
                CallerError("method_not_allowed", f"this path has {match.allow}"), call.request_id
            )
            refused.headers["Allow"] = match.allow
            return refused
        call.path_names = match.names
        _check_access(endpoint, call)
        if endpoint.action in _NOT_SERVED:
            raise CallerError("not_implemented", _NOT_SERVED[endpoint.action])
        return await self._handlers[endpoint.action](call)

    # The server.

    async def _live(self, call: HttpRequest) -> StreamResponse:
        return response.json_response({"live": True}, extra=call.echo_headers)

    async def _ready(self, call: HttpRequest) -> StreamResponse:
        ready, reason = self._backend.ready()
        if ready:
            return response.json_response({"ready": True, "live": True}, extra=call.echo_headers)
        return response.json_response(
            {"ready": False, "live": True, "error": reason}, 503, {**call.echo_headers, "Retry-After": "1"}
        )

    async def _metrics(self, call: HttpRequest) -> StreamResponse:
        text = metrics.metrics_text(self._counting.totals(), await self._facts.get())
        return Response(body=text, headers=response.response_headers(metrics.CONTENT_TYPE, call.echo_headers))

    async def _server(self, call: HttpRequest) -> StreamResponse:
        backend = self._backend
        return response.json_response(
            metadata.server_metadata(backend.server_name, backend.server_version), extra=call.echo_headers
        )

    async def _models(self, call: HttpRequest) -> StreamResponse:
        return response.json_response({"models": self._backend.routes.names()}, extra=call.echo_headers)

    # One model.

    async def _model(self, call: HttpRequest) -> StreamResponse:
        routes = self._backend.routes
        state = routes.version(call.model, call.version)
        return response.json_response(metadata.model_metadata(routes.model(call.model), state), extra=call.echo_headers)

    async def _model_ready(self, call: HttpRequest) -> StreamResponse:
        state = self._backend.routes.version(call.model, call.version)
        ready, document = metadata.readiness_document(call.model, state)
        return response.json_response(
            document, 200 if ready else 503, call.echo_headers if ready else {**call.echo_headers, "Retry-After": "1"}
        )

    async def _model_config(self, call: HttpRequest) -> StreamResponse:
        routes = self._backend.routes
        state = routes.version(call.model, call.version)
        return response.json_response(metadata.model_config(routes.model(call.model), state), extra=call.echo_headers)

    async def _model_stats(self, call: HttpRequest) -> StreamResponse:
        routes = self._backend.routes
        version = routes.version(call.model, call.version).version if call.version else ""
        document = statistics.model_statistics(
            [routes.model(call.model)], self._counting.totals(), await self._facts.get(), version
        )
        return response.json_response(document, extra=call.echo_headers)

    async def _all_stats(self, call: HttpRequest) -> StreamResponse:
        routes = self._backend.routes
        known = [routes.model(name) for name in routes.names()]
        return response.json_response(
            statistics.model_statistics(known, self._counting.totals(), await self._facts.get()),
            extra=call.echo_headers,
        )

    # What is not there.

    async def _not_served(self, call: HttpRequest) -> StreamResponse:
        raise AssertionError(f"{call.request.raw_path} is answered before")

    async def _no_regions(self, call: HttpRequest) -> StreamResponse:
        return response.json_response([], extra=call.echo_headers)

    async def _unregister(self, call: HttpRequest) -> StreamResponse:
        """There is nothing to unregister; clients do so before anything else, and take only success for an answer."""
        return response.empty_response(call.echo_headers)


def _check_access(endpoint: HttpRoute, call: HttpRequest) -> None:
    """Control is for those who are on this machine."""
    if endpoint.access is Access.CONTROL and not call.is_local:
        text = "control calls are answered on loopback and UNIX listeners only"
        raise CallerError("forbidden", text)
