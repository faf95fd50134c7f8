"""The HTTP application: each endpoint of the table to the method that answers it.

This is the gateway's outermost loop for a request: every error becomes its reply here, a bug of ours is logged here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse

from mmsup.gateway.api.repository import Repository
from mmsup.gateway.http import response
from mmsup.gateway.http.request import Call
from mmsup.gateway.http.url_routes import ENDPOINTS, Access, Endpoint, find
from mmsup.gateway.infer.fair_queue import HOUSE, STRANGERS
from mmsup.gateway.infer.handler import Inference, told
from mmsup.gateway.observability import metrics, statistics
from mmsup.gateway.observability.controller_status import Facts
from mmsup.gateway.protocol import metadata
from mmsup.ipc.errors import CallerError, MmsupError

_MISSING: Final = {
    "no_generate": "generate is not served yet: use infer",
    "no_logging": "log settings cannot be changed while the server runs: use --log-verbose and --log-format",
    "no_trace": "tracing is not served yet",
    "no_region": "client shared memory is not served: send tensors as binary data",
    "no_register": "client shared memory is not served: send tensors as binary data",
    "other_repository": "a repository cannot be named in the path: leave it out",
}
SLOW_COST: Final = 4
"""What a request that aiohttp serves counts for where requests take turns."""
Handler = Callable[[Call], Awaitable[StreamResponse]]


class App:
    """What a listener hands each request to."""

    def __init__(self, inference: Inference) -> None:
        backend = inference.backend
        self._backend = backend
        self._counting = inference.counting
        self._turns = inference.turns
        self._facts = Facts(backend)
        repository = Repository(backend)
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
            "infer": inference.answer,
            "index": repository.index,
            "load": repository.load,
            "unload": repository.unload,
            "no_regions": self._no_regions,
            "unregister": self._unregister,
            **dict.fromkeys(_MISSING, self._missing),
        }
        assert self._handlers.keys() == {each.does for each in ENDPOINTS}, "an endpoint has no handler, or the reverse"

    async def serve(self, request: BaseRequest) -> StreamResponse:
        """The reply to any request of the API's listeners."""
        return await self._answered(Call(request), only=None)

    async def serve_metrics(self, request: BaseRequest) -> StreamResponse:
        """The reply to any request of a listener that has metrics and nothing else."""
        return await self._answered(Call(request), only="metrics")

    async def _answered(self, call: Call, only: str | None) -> StreamResponse:
        try:
            made = await self._routed(call, only)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request: the client has its answer
            made = self._failed(call, told(error))
        if self._backend.retired and not made.prepared:
            made.force_close()
        return made

    def _failed(self, call: Call, error: MmsupError) -> StreamResponse:
        transport = call.request.transport
        if call.request.writer.output_size > 0 and transport is not None:
            transport.abort()  # half a reply went out: the client must not take what follows for the rest
        return response.error(error, call.request_id, call.echo)

    async def _routed(self, call: Call, only: str | None) -> StreamResponse:
        request = call.request
        match = find(request.raw_path)
        await self._turns.come(match.names.get("model", HOUSE) if match else STRANGERS, SLOW_COST)
        if match is None or (only is not None and all(each.does != only for each in match.methods.values())):
            raise CallerError("unknown_path", "there is nothing at this path")
        if request.method == "OPTIONS":
            return response.empty({**call.echo, "Allow": match.allow})
        endpoint = match.methods.get(request.method)
        if endpoint is None:
            refused = response.error(CallerError("method_not_allowed", f"this path has {match.allow}"), call.request_id)
            refused.headers["Allow"] = match.allow
            return refused
        call.names = match.names
        _check_access(endpoint, call)
        if endpoint.does in _MISSING:
            raise CallerError("not_implemented", _MISSING[endpoint.does])
        return await self._handlers[endpoint.does](call)

    # The server.

    async def _live(self, call: Call) -> StreamResponse:
        return response.json({"live": True}, extra=call.echo)

    async def _ready(self, call: Call) -> StreamResponse:
        ready, reason = self._backend.ready()
        if ready:
            return response.json({"ready": True, "live": True}, extra=call.echo)
        return response.json({"ready": False, "live": True, "error": reason}, 503, {**call.echo, "Retry-After": "1"})

    async def _metrics(self, call: Call) -> StreamResponse:
        text = metrics.page(self._counting.totals(), await self._facts.now())
        return Response(body=text, headers=response.head(metrics.CONTENT_TYPE, call.echo))

    async def _server(self, call: Call) -> StreamResponse:
        backend = self._backend
        return response.json(metadata.server(backend.server_name, backend.server_version), extra=call.echo)

    async def _models(self, call: Call) -> StreamResponse:
        return response.json({"models": self._backend.routes.names()}, extra=call.echo)

    # One model.

    async def _model(self, call: Call) -> StreamResponse:
        routes = self._backend.routes
        state = routes.version(call.model, call.version)
        return response.json(metadata.model(routes.model(call.model), state), extra=call.echo)

    async def _model_ready(self, call: Call) -> StreamResponse:
        state = self._backend.routes.version(call.model, call.version)
        ready, document = metadata.readiness(call.model, state)
        return response.json(document, 200 if ready else 503, call.echo if ready else {**call.echo, "Retry-After": "1"})

    async def _model_config(self, call: Call) -> StreamResponse:
        routes = self._backend.routes
        state = routes.version(call.model, call.version)
        return response.json(metadata.config(routes.model(call.model), state), extra=call.echo)

    async def _model_stats(self, call: Call) -> StreamResponse:
        routes = self._backend.routes
        version = routes.version(call.model, call.version).version if call.version else ""
        document = statistics.models(
            [routes.model(call.model)], self._counting.totals(), await self._facts.now(), version
        )
        return response.json(document, extra=call.echo)

    async def _all_stats(self, call: Call) -> StreamResponse:
        routes = self._backend.routes
        known = [routes.model(name) for name in routes.names()]
        return response.json(
            statistics.models(known, self._counting.totals(), await self._facts.now()), extra=call.echo
        )

    # What is not there.

    async def _missing(self, call: Call) -> StreamResponse:
        raise AssertionError(f"{call.request.raw_path} is answered before")

    async def _no_regions(self, call: Call) -> StreamResponse:
        return response.json([], extra=call.echo)

    async def _unregister(self, call: Call) -> StreamResponse:
        """There is nothing to unregister; clients do so before anything else, and take only success for an answer."""
        return response.empty(call.echo)


def _check_access(endpoint: Endpoint, call: Call) -> None:
    """Control is for those who are on this machine."""
    if endpoint.access is Access.CONTROL and not call.is_local:
        text = "control calls are answered on loopback and UNIX listeners only"
        raise CallerError("forbidden", text)
