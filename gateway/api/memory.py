"""Endpoints of memory that clients share with the server: register, unregister, status."""

from __future__ import annotations

import base64
from typing import Any, Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.client_memory.region_rules import HANDLE_BYTES, Peer
from mmsup.gateway.client_memory.region_table import CUDA, SYSTEM, RegionTable
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.protocol.json_document import as_object, parse_error
from mmsup.ipc.errors import ServerError
from mmsup.ipc.messages.gateway_control import MemoryRegion

Json = dict[str, Any]  # a JSON object
READERS_LIMIT: Final = 64
"""Registrations whose bodies are being received."""


class MemoryApi:
    """Request handlers; each action exists for system memory and for that of GPUs."""

    def __init__(self, regions: RegionTable) -> None:
        self._regions = regions
        self._reading = 0

    async def system_status(self, request: HttpRequest) -> StreamResponse:
        return self._status(SYSTEM, request)

    async def cuda_status(self, request: HttpRequest) -> StreamResponse:
        return self._status(CUDA, request)

    async def system_unregister(self, request: HttpRequest) -> StreamResponse:
        return await self._unregister(SYSTEM, request)

    async def cuda_unregister(self, request: HttpRequest) -> StreamResponse:
        return await self._unregister(CUDA, request)

    async def system_register(self, request: HttpRequest) -> StreamResponse:
        self._regions.check_access(is_local=request.is_local)
        given = await self._document(request)
        key = given.get("key")
        if not isinstance(key, str):
            raise parse_error("'key' must be a string")
        size, offset = _integer(given, "byte_size"), _integer(given, "offset", 0)
        await self._regions.register_system(_name(request), key, offset, size, _peer(request))
        return response.empty_response(request.echo_headers)

    async def cuda_register(self, request: HttpRequest) -> StreamResponse:
        self._regions.check_access(is_local=request.is_local)
        given = await self._document(request)
        handle = _handle(given)
        device, size = _integer(given, "device_id", 0), _integer(given, "byte_size")
        await self._regions.register_cuda(_name(request), handle, device, size, _peer(request))
        return response.empty_response(request.echo_headers)

    async def _document(self, request: HttpRequest) -> Json:
        if self._reading >= READERS_LIMIT:
            raise ServerError("queue_full", "too many registrations at once", retry_after_s=1)
        self._reading += 1
        try:
            return await request.read_document()
        finally:
            self._reading -= 1

    def _status(self, kind: str, request: HttpRequest) -> StreamResponse:
        found = self._regions.status(kind, _name(request), _peer(request))
        return response.json_response([_row(each) for each in found], extra=request.echo_headers)

    async def _unregister(self, kind: str, request: HttpRequest) -> StreamResponse:
        """Succeeds for what is not registered: clients unregister all regions first, and give up if that fails."""
        await self._regions.unregister(kind, _name(request), _peer(request))
        return response.empty_response(request.echo_headers)


def _row(region: MemoryRegion) -> Json:
    if region.kind == SYSTEM:
        return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
    return {"name": region.name, "device_id": region.device, "byte_size": region.byte_size}


def _name(request: HttpRequest) -> str:
    """Of the region in the path; empty for all."""
    return request.path_names.get("region", "")


def _peer(request: HttpRequest) -> Peer:
    return Peer(request.is_local, request.peer_uid)


def _integer(given: Json, key: str, default: int | None = None) -> int:
    value = given.get(key, default)
    if type(value) is not int:
        raise parse_error(f"'{key}' must be an integer")
    return value


def _handle(given: Json) -> bytes:
    raw = as_object(given.get("raw_handle"))
    text = raw.get("b64") if raw is not None else None
    try:
        handle = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:  # also of text that is not ASCII
        handle = b""
    if len(handle) != HANDLE_BYTES:
        raise parse_error(f"'raw_handle' must be an object with 'b64', {HANDLE_BYTES} bytes in base64")
    return handle
