"""The methods of `inference.GRPCInferenceService` that answer one message with one, but for ModelInfer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf import json_format

from mmsup.gateway.client_memory.region_table import RegionTable
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.observability import statistics
from mmsup.gateway.observability.controller_status import (
    CallController,
    ControllerStatus,
    ask_controller,
    change_model,
)
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.observability.slices import in_slices
from mmsup.gateway.protocol import metadata
from mmsup.gateway.protocol.control_calls import FILE_PREFIX, check_local, load_request
from mmsup.gateway.rpc.calls.messages import INFERENCE, Message, methods
from mmsup.gateway.rpc.calls.peer import RpcPeer
from mmsup.gateway.rpc.services import settings_messages as settings
from mmsup.gateway.rpc.services.memory_service import MemoryService
from mmsup.ipc.errors import CallerError, MmsupError
from mmsup.ipc.messages.gateway_control import VersionState

Json = dict[str, Any]  # a JSON object
CONTROL: Final = frozenset({"RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"})
"""Answered to clients on this machine alone, unless they ask for settings and change none."""
_ROWS: Final = ("model_stats", "models")
Unary = Callable[[Message], Awaitable[Json]]


class InferenceService:
    """Each handler takes the request's message and returns its reply as JSON; it raises MmsupError."""

    def __init__(
        self,
        router: Router,
        counters: RequestCounters,
        status: ControllerStatus,
        call_controller: CallController,
        regions: RegionTable,
    ) -> None:
        self._router = router
        self._counters = counters
        self._status = status
        self._call_controller = call_controller
        self._handlers: dict[str, Unary] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "TraceSetting": self._trace_settings,
            "LogSettings": self._log_settings,
        }
        self._memory = MemoryService(regions)

    async def handle(self, method: str, request: Message, peer: RpcPeer) -> Message:
        """The reply of one method."""
        if method in CONTROL and getattr(request, "settings", True):
            check_local(is_local=peer.is_local)
        reply = methods(INFERENCE)[method].reply()
        handler = self._handlers.get(method)
        if handler is None:  # about regions of shared memory
            await self._memory.handle(method, request, reply, peer)
        else:
            await _fill(reply, await handler(request))
        return reply

    async def _server_live(self, _: Message) -> Json:
        return {"live": True}

    async def _server_ready(self, _: Message) -> Json:
        return {"ready": self._router.status.readiness()[0]}

    async def _model_ready(self, request: Message) -> Json:
        try:
            state = self._router.routes.version(request.name, request.version)
        except MmsupError:
            return {"ready": False}
        return {"ready": metadata.readiness_document(request.name, state)[0]}

    async def _server_metadata(self, _: Message) -> Json:
        return metadata.server_metadata(self._router.configuration)

    async def _model_metadata(self, request: Message) -> Json:
        state = await self._router.described_version(request.name, request.version)
        return metadata.model_metadata(self._router.routes.model(request.name), state)

    async def _model_config(self, request: Message) -> Json:
        state: VersionState = self._router.routes.version(request.name, request.version)
        return {"config": metadata.model_config(self._router.routes.model(request.name), state)}

    async def _model_statistics(self, request: Message) -> Json:
        routes, counters = self._router.routes, self._counters
        names = [request.name] if request.name else routes.names()
        version = routes.version(request.name, request.version).version if request.version and request.name else ""
        models = [routes.model(name) for name in names]
        status = await self._status.get()
        rows = statistics.model_statistics(models, counters.totals(), counters.batch_totals(), status, version)
        return {"model_stats": rows}

    async def _index(self, request: Message) -> Json:
        _check_repository(request.repository_name)
        rows = await ask_controller(self._call_controller, "index", {"ready": request.ready})
        return {"models": rows}

    async def _load(self, request: Message) -> Json:
        return await self._change("load", request)

    async def _unload(self, request: Message) -> Json:
        return await self._change("unload", request)

    async def _log_settings(self, request: Message) -> Json:
        shown = await ask_controller(self._call_controller, "log_settings", {"settings": settings.log_changes(request)})
        return settings.log_reply(shown)

    async def _trace_settings(self, request: Message) -> Json:
        changes = {"settings": settings.trace_changes(request), "name": request.model_name}
        return settings.trace_reply(await ask_controller(self._call_controller, "trace_settings", changes))

    async def _change(self, command: str, request: Message) -> Json:
        _check_repository(request.repository_name)
        name = request.model_name
        given: Json = {}
        for key, value in request.parameters.items():
            kind = value.WhichOneof("choice")
            is_file = key.startswith(FILE_PREFIX)
            if kind is None or (kind == "bytes_param" and not is_file):
                raise CallerError("bad_request", f"parameter '{key:.80}' is no scalar", model=name)
            given[key] = getattr(value, kind)
        parsed = load_request(name, given, self._router.configuration, long_name_code="load_failed")
        arguments = {"name": name, **({"parameters": parsed.parameters} if parsed.parameters else {})}
        await change_model(self._call_controller, command, arguments, parsed.files)
        return {}


async def _fill(reply: Message, document: Json) -> None:
    """Set the fields of a message; those that are rows, of which there may be hundreds, in slices."""
    for key, value in document.items():
        if key in _ROWS:
            rows = getattr(reply, key)
            await in_slices(value, lambda row, rows=rows: _parse(row, rows.add()))  # type: ignore[misc]
        else:
            _parse({key: value}, reply)


def _parse(document: Json, message: Message) -> None:
    json_format.ParseDict(document, message, ignore_unknown_fields=True)


def _check_repository(name: str) -> None:
    if name:
        raise CallerError("not_implemented", "a repository cannot be named: leave repository_name empty")
