"""One HTTP request as the handlers see it: names in its path, request id, whether its client is local."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast

from aiohttp.web_request import BaseRequest

from mmsup.gateway.http import host_policy, request_body
from mmsup.gateway.http.host_policy import HostPolicy
from mmsup.gateway.protocol import json_document
from mmsup.gateway.protocol.control_calls import check_local
from mmsup.gateway.protocol.json_document import parse_error

_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_CREDENTIALS: Final = struct.Struct("iII")
"""`struct ucred`: process, user, group."""
ID_HEADER: Final = "X-Request-Id"


def echoed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Request headers that are copied into the response."""
    given = headers.get(ID_HEADER, "")
    return {ID_HEADER: given} if _ID.fullmatch(given) else {}


def socket_peer_uid(sock: Any) -> int | None:  # a transport's socket, of asyncio or uvloop
    """The user of the process at the other end of a UNIX socket; None for any other socket."""
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    return int(_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


class _ListenerConnection(Protocol):
    is_local: bool
    hosts: HostPolicy


class HttpRequest:
    """`raw`: the request of aiohttp."""

    def __init__(self, request: BaseRequest) -> None:
        self.raw = request
        self.path_names: dict[str, str] = {}
        """Parameters of the path: model, version and others."""
        self.echo_headers = echoed_headers(request.headers)
        self.request_id = self.echo_headers.get(ID_HEADER, "")
        """For error bodies and logs; later the `id` in the request's JSON, if there is one."""

    @property
    def model(self) -> str:
        return self.path_names["model"]

    @property
    def version(self) -> str:
        """Empty: the default version."""
        return self.path_names.get("version", "")

    @property
    def _connection(self) -> _ListenerConnection:
        return cast("_ListenerConnection", self.raw.protocol)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach its listener."""
        return self._connection.is_local

    @property
    def peer_uid(self) -> int | None:
        """The user of its client on a UNIX socket; None over TCP."""
        transport = self.raw.transport
        return socket_peer_uid(transport.get_extra_info("socket")) if transport is not None else None

    def check_host(self) -> None:
        """CallerError if its listener does not answer to the host that it is for."""
        raw = self.raw
        host_policy.check_host(self._connection.hosts, raw.headers.getall("Host", []), raw.raw_path)

    def check_change(self) -> None:
        """CallerError if what it changes may not be changed by whoever sent it."""
        check_local(is_local=self._connection.is_local)
        self.check_origin()

    def check_origin(self) -> None:
        """CallerError if a web page of another site may have sent it."""
        host_policy.check_change(self._connection.hosts, self.raw.headers, has_body=self.raw.can_read_body)

    async def read_document(self) -> dict[str, Any]:  # a JSON object
        """The JSON body of a control request; empty if there is no body."""
        body = await self.read_control_body(request_body.DOCUMENT_LIMIT_BYTES)
        if not body.strip():
            return {}
        value = json_document.parse_json(bytes(body))
        if not isinstance(value, dict):
            raise parse_error("it is not an object")
        return cast("dict[str, Any]", value)  # as above

    async def read_control_body(self, limit_bytes: int) -> bytearray:
        request_body.check_head(self.raw, limit_bytes)
        await request_body.send_continue(self.raw)
        return await request_body.read_all(self.raw, limit_bytes)
