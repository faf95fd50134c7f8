"""The client for asyncio, with the methods of the blocking one. Calls may run side by side, each on a connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy.typing as npt

from mmsup.client import calls, http_message, replies, retry
from mmsup.client.address import parse_address
from mmsup.client.async_connection import AsyncConnection, open_connection
from mmsup.client.calls import Call, InferOptions
from mmsup.client.errors import ClientError, TimedOut
from mmsup.client.http_message import EventParser
from mmsup.client.replies import HttpReply, InferResult, ModelMetadata, ModelState, ServerMetadata
from mmsup.client.shared_memory import SharedMemory
from mmsup.client.sync_client import IDLE_LIMIT, TIMEOUT_S
from mmsup.client.sync_connection import TIMED_OUT
from mmsup.client.tensors import Array

T = TypeVar("T")


class AsyncClient:
    """`address`: `host:port`, or `unix:/path`. `timeout_s`: of each call, with all its tries. `retries`: how often a
    call is tried again whose error says that another try may succeed."""

    def __init__(self, address: str = "localhost:8000", *, timeout_s: float = TIMEOUT_S, retries: int = 0) -> None:
        self._address = parse_address(address)
        self._timeout_s = timeout_s
        self._retries = retries
        self._idle: list[AsyncConnection] = []
        self._memories: list[SharedMemory] = []
        self._datatypes: dict[tuple[str, str], dict[str, str]] = {}
        """Of the outputs of models that have streamed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, and share no memory any more."""
        for memory in list(self._memories):
            with contextlib.suppress(ClientError):
                await self._end_sharing(memory)
        idle, self._idle = self._idle, []
        for each in idle:
            each.close()
        for each in idle:
            await each.wait_closed()

    # Inference.

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: Sequence[str] | None = None,
        into: Mapping[str, Array] | None = None,
        version: str = "",
        id: str = "",  # noqa: A002 - the protocol's word
        priority: int = 0,
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
        retries: int | None = None,
    ) -> InferResult:
        """As `Client.infer`. A call that is cancelled is cancelled at the server, too."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        options = InferOptions(version, outputs, into or {}, id, priority, parameters or {}, limit_s)
        return await self._run(calls.infer(model, inputs, options, self._memories), limit_s, retries)

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - as above
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> AsyncGenerator[InferResult, None]:
        """As `Client.stream`; to stop early, close it by `aclose`, or use `contextlib.aclosing`."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        options = InferOptions(version, id=id, parameters=parameters or {}, timeout_s=limit_s)
        path, body, headers = calls.stream(model, inputs, options)
        datatypes = await self._output_datatypes(model, version)
        request = self._request("POST", path, headers, body)
        connection = None
        try:
            async with _deadline(limit_s):
                connection = await self._take()
                await connection.send(request)
                head = await connection.receive_head()
                if head.status != calls.OK or head.length is not None:
                    rest = await connection.receive_rest(head)
                    raise replies.refusal(head, bytes(rest), model)
            parser, pieces = EventParser(), connection.receive_chunks()
            while (piece := await _next(pieces, silence_s)) is not None:
                for event in parser.feed(piece):
                    yield replies.read_event(event, model, datatypes, head)
        finally:
            if connection is not None:
                self._return(connection)

    async def _output_datatypes(self, model: str, version: str) -> dict[str, str]:
        key = model, version
        if key not in self._datatypes:
            found = await self.model_metadata(model, version)
            self._datatypes[key] = {each.name: each.datatype for each in found.outputs}
        return self._datatypes[key]

    # Models and the server.

    async def is_live(self) -> bool:
        return await self._run(calls.is_live())

    async def is_ready(self, model: str = "", version: str = "") -> bool:
        """Of a model, or of the server."""
        return await self._run(calls.is_ready(model, version))

    async def server_metadata(self) -> ServerMetadata:
        return await self._run(calls.server_metadata())

    async def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        return await self._run(calls.model_metadata(model, version))

    async def document(self, path: str) -> Any:  # any JSON value
        """Any other document of the server, as `/v2/models/mine/config` or `/v2/models/stats`."""
        return await self._run(calls.document(path))

    async def index(self, *, ready: bool = False) -> list[ModelState]:
        """All models and versions, or those that are ready."""
        return await self._run(calls.index(ready=ready))

    async def load(self, model: str, *, timeout_s: float | None = None, **parameters: Any) -> None:  # JSON scalars
        """Load a model, or load it again; returns when it serves."""
        await self._run(calls.load(model, parameters), timeout_s)

    async def unload(self, model: str, *, timeout_s: float | None = None, **parameters: Any) -> None:  # as above
        await self._run(calls.unload(model, parameters), timeout_s)

    @contextlib.asynccontextmanager
    async def shared_memory(self, size: int) -> AsyncIterator[SharedMemory]:
        """Memory of so many bytes that this client shares with a server on this machine, until the end of the block."""
        memory = SharedMemory(size)
        try:
            await self._run(calls.register(memory))
            memory.remove_name()
            self._memories.append(memory)
            yield memory
        finally:
            await self._end_sharing(memory)

    async def _end_sharing(self, memory: SharedMemory) -> None:
        if memory in self._memories:
            self._memories.remove(memory)
            try:
                await self._run(calls.unregister(memory))
            finally:
                memory.close()
        else:
            memory.close()

    # Calls.

    async def _run(self, call: Call[T], timeout_s: float | None = None, retries: int | None = None) -> T:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + limit_s
        request = self._request(call.method, call.path, call.headers, call.body)
        tried = 0
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                async with _deadline(left_s):
                    reply = await self._exchange(request)
                return call.result(reply)
            except ClientError as error:
                tried += 1
                error.model = error.model or call.model
                more = self._retries if retries is None else retries
                wait_s = retry.next_wait_s(error, tried, more, deadline_s - time.monotonic(), random.random())
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes | memoryview]
    ) -> list[bytes | memoryview]:
        length = sum(map(len, body))
        return [http_message.request_head(method, path, self._address.host_header, headers, length), *body]

    async def _exchange(self, request: Sequence[bytes | memoryview]) -> HttpReply:
        connection = await self._take()
        try:
            await connection.send(request)
            return await connection.receive()
        finally:
            self._return(connection)

    async def _take(self) -> AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale:
                return connection
            connection.close()
        return await open_connection(self._address)

    def _return(self, connection: AsyncConnection) -> None:
        if connection.is_usable and len(self._idle) < IDLE_LIMIT:
            self._idle.append(connection)
        else:
            connection.close()


@contextlib.asynccontextmanager
async def _deadline(limit_s: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise TimedOut(TIMED_OUT) from None


async def _next(pieces: AsyncIterator[bytes], silence_s: float | None) -> bytes | None:
    async with _deadline(silence_s):
        return await anext(pieces, None)
