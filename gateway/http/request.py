"""One HTTP request while it is being answered: where it came from, what its path names, how it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp.web_request import BaseRequest

from mmsup.gateway.http import request_body
from mmsup.gateway.protocol import json_document
from mmsup.gateway.protocol.json_document import parse_error

if TYPE_CHECKING:
    from mmsup.gateway.connections.aiohttp_connection import AiohttpConnection

_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
ID_HEADER: Final = "X-Request-Id"


def echoed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a request that go back as they came."""
    given = headers.get(ID_HEADER, "")
    return {ID_HEADER: given} if _ID.fullmatch(given) else {}


class HttpRequest:
    """What handlers are given."""

    def __init__(self, request: BaseRequest) -> None:
        self.request = request
        self.path_names: dict[str, str] = {}
        """Model, version and the like, as the path named them."""
        self.echo_headers = echoed_headers(request.headers)
        """Headers that go back as they came."""
        self.request_id = self.echo_headers.get(ID_HEADER, "")
        """For error bodies and logs; the `id` of the request's JSON, once that is read."""

    @property
    def model(self) -> str:
        """The model in the path."""
        return self.path_names["model"]

    @property
    def version(self) -> str:
        """The version in the path; empty: the default one."""
        return self.path_names.get("version", "")

    @property
    def is_local(self) -> bool:
        """Whether it came by a listener that only this machine can reach."""
        return cast("AiohttpConnection", self.request.protocol).is_local

    async def read_document(self) -> dict[str, Any]:  # a JSON object
        """The body of a control call; empty for none."""
        limit = request_body.DOCUMENT_LIMIT_BYTES
        request_body.check_head(self.request, limit)
        await request_body.send_continue(self.request)
        body = await request_body.read_all(self.request, limit)
        if not body.strip():
            return {}
        value = json_document.parse_json(bytes(body))
        if not isinstance(value, dict):
            raise parse_error("it is not an object")
        return cast("dict[str, Any]", value)  # as above
