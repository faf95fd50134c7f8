"""The model repository over HTTP: what there is, load, unload. The brain does it; here it is only asked."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import response
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.protocol.json_document import as_object, parse_error
from mmsup.ipc.errors import CallerError, ServerError

INDEX_WAIT_S: Final = 10.0
READERS_LIMIT: Final = 64
"""Control calls whose bodies are on their way in: each may gather a megabyte."""


class RepositoryApi:
    """The handlers."""

    def __init__(self, backend: Router) -> None:
        self._backend = backend
        self._reading = 0

    async def _document(self, call: HttpRequest) -> dict[str, Any]:  # a JSON object
        """The body of a control call; ServerError if too many are being read."""
        if self._reading >= READERS_LIMIT:
            raise ServerError("queue_full", "too many control calls at once", retry_after_s=1)
        self._reading += 1
        try:
            return await call.read_document()
        finally:
            self._reading -= 1

    async def index(self, call: HttpRequest) -> StreamResponse:
        """All models and versions with their states; with `ready` only those that serve."""
        asked = await self._document(call)
        only_ready = asked.get("ready", False)
        if not isinstance(only_ready, bool):
            raise parse_error("'ready' must be true or false")
        try:
            async with asyncio.timeout(INDEX_WAIT_S):
                rows = await self._backend.call_controller("index", {"ready": only_ready})
        except TimeoutError:
            raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=2) from None
        return response.json_response(rows, extra=call.echo_headers)

    async def load(self, call: HttpRequest) -> StreamResponse:
        """Load or reload; answers when the model serves, or with the reason why not."""
        await self._backend.call_controller(
            "load", {"name": call.model, **_parameters(call, await self._document(call))}
        )
        return response.empty_response(call.echo_headers)

    async def unload(self, call: HttpRequest) -> StreamResponse:
        """Unload; answers when nothing is routed to the model any more."""
        await self._backend.call_controller(
            "unload", {"name": call.model, **_parameters(call, await self._document(call))}
        )
        return response.empty_response(call.echo_headers)


def _parameters(call: HttpRequest, document: dict[str, Any]) -> dict[str, Any]:  # JSON; scalars, judged by the brain
    """The `parameters` of a load or unload, as an argument only if there are any."""
    said = document.get("parameters")
    given = {} if said is None else as_object(said)
    if given is None or not all(isinstance(each, str | int | float | bool) for each in given.values()):
        raise parse_error("'parameters' must be an object of scalars")
    files = [key for key in given if key.startswith("file:")]
    if files:
        text = f"failed to load '{call.model}': files may not be sent to this server"
        raise CallerError("forbidden", text, model=call.model)
    return {"parameters": given} if given else {}
