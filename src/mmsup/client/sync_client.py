"""The blocking client. One may be used by several threads: each call takes a connection of its own."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import numpy.typing as npt

from mmsup.client import calls, http_message, replies, retry
from mmsup.client.address import parse_address
from mmsup.client.calls import Call, InferOptions
from mmsup.client.errors import ClientError
from mmsup.client.http_message import EventParser
from mmsup.client.replies import HttpReply, InferResult, ModelMetadata, ModelState, ServerMetadata
from mmsup.client.shared_memory import SharedMemory
from mmsup.client.sync_connection import SyncConnection
from mmsup.client.tensors import Array

T = TypeVar("T")
TIMEOUT_S: Final = 60.0
IDLE_LIMIT: Final = 16
"""Connections that are kept open between calls."""


class Client:
    """`address`: `host:port`, or `unix:/path`. `timeout_s`: of each call, with all its tries. `retries`: how often a
    call is tried again whose error says that another try may succeed."""

    def __init__(self, address: str = "localhost:8000", *, timeout_s: float = TIMEOUT_S, retries: int = 0) -> None:
        self._address = parse_address(address)
        self._timeout_s = timeout_s
        self._retries = retries
        self._idle: list[SyncConnection] = []
        self._memories: list[SharedMemory] = []
        self._datatypes: dict[tuple[str, str], dict[str, str]] = {}
        """Of the outputs of models that have streamed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and share no memory any more."""
        for memory in list(self._memories):
            with contextlib.suppress(ClientError):
                self._end_sharing(memory)
        while self._idle:
            self._idle.pop().close()

    # Inference.

    def infer(
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
        """The outputs (all, or those named), as arrays. Arrays in memory that this client shares are not sent. `into`:
        arrays in such memory that outputs are written to. ClientError says what went wrong."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        options = InferOptions(version, outputs, into or {}, id, priority, parameters or {}, limit_s)
        return self._run(calls.infer(model, inputs, options, self._memories), limit_s, retries)

    def stream(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        version: str = "",
        id: str = "",  # noqa: A002 - as above
        parameters: Mapping[str, bool | int | float | str] | None = None,
        timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> Iterator[InferResult]:
        """The responses of a model that answers any number of times, as they come. `timeout_s`: until the first;
        `silence_s`: between two, without end unless it is given. To stop early, close the iterator."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        options = InferOptions(version, id=id, parameters=parameters or {}, timeout_s=limit_s)
        path, body, headers = calls.stream(model, inputs, options)
        datatypes = self._output_datatypes(model, version)
        return self._events(model, self._request("POST", path, headers, body), datatypes, (limit_s, silence_s))

    def _events(
        self,
        model: str,
        request: Sequence[bytes | memoryview],
        datatypes: Mapping[str, str],
        limits_s: tuple[float, float | None],
    ) -> Iterator[InferResult]:
        deadline_s = time.monotonic() + limits_s[0]
        connection = self._take(deadline_s)
        try:
            connection.send(request, deadline_s)
            head = connection.receive_head(deadline_s)
            if head.status != calls.OK or head.length is not None:
                body = connection.receive_rest(head, deadline_s)
                raise replies.refusal(head, bytes(body), model)
            parser = EventParser()
            for piece in connection.receive_chunks(limits_s[1]):
                for event in parser.feed(piece):
                    yield replies.read_event(event, model, datatypes, head)
        finally:
            self._return(connection)

    def _output_datatypes(self, model: str, version: str) -> dict[str, str]:
        key = model, version
        if key not in self._datatypes:
            self._datatypes[key] = {each.name: each.datatype for each in self.model_metadata(model, version).outputs}
        return self._datatypes[key]

    # Models and the server.

    def is_live(self) -> bool:
        return self._run(calls.is_live())

    def is_ready(self, model: str = "", version: str = "") -> bool:
        """Of a model, or of the server."""
        return self._run(calls.is_ready(model, version))

    def server_metadata(self) -> ServerMetadata:
        return self._run(calls.server_metadata())

    def model_metadata(self, model: str, version: str = "") -> ModelMetadata:
        return self._run(calls.model_metadata(model, version))

    def document(self, path: str) -> Any:  # any JSON value
        """Any other document of the server, as `/v2/models/mine/config` or `/v2/models/stats`."""
        return self._run(calls.document(path))

    def index(self, *, ready: bool = False) -> list[ModelState]:
        """All models and versions, or those that are ready."""
        return self._run(calls.index(ready=ready))

    def load(self, model: str, *, timeout_s: float | None = None, **parameters: Any) -> None:  # JSON scalars
        """Load a model, or load it again; returns when it serves."""
        self._run(calls.load(model, parameters), timeout_s)

    def unload(self, model: str, *, timeout_s: float | None = None, **parameters: Any) -> None:  # as above
        self._run(calls.unload(model, parameters), timeout_s)

    @contextlib.contextmanager
    def shared_memory(self, size: int) -> Iterator[SharedMemory]:
        """Memory of so many bytes that this client shares with a server on this machine, until the end of the block."""
        memory = SharedMemory(size)
        try:
            self._run(calls.register(memory))
            memory.remove_name()
            self._memories.append(memory)
            yield memory
        finally:
            self._end_sharing(memory)

    def _end_sharing(self, memory: SharedMemory) -> None:
        if memory in self._memories:
            self._memories.remove(memory)
            try:
                self._run(calls.unregister(memory))
            finally:
                memory.close()
        else:
            memory.close()

    # Calls.

    def _run(self, call: Call[T], timeout_s: float | None = None, retries: int | None = None) -> T:
        deadline_s = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        request = self._request(call.method, call.path, call.headers, call.body)
        tried = 0
        while True:
            try:
                return call.result(self._exchange(request, deadline_s))
            except ClientError as error:
                tried += 1
                error.model = error.model or call.model
                more = self._retries if retries is None else retries
                left_s = deadline_s - time.monotonic()
                wait_s = retry.next_wait_s(error, tried, more, left_s, random.random())
                if wait_s is None:
                    raise
            time.sleep(wait_s)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes | memoryview]
    ) -> list[bytes | memoryview]:
        length = sum(map(len, body))
        return [http_message.request_head(method, path, self._address.host_header, headers, length), *body]

    def _exchange(self, request: Sequence[bytes | memoryview], deadline_s: float) -> HttpReply:
        connection = self._take(deadline_s)
        try:
            connection.send(request, deadline_s)
            return connection.receive(deadline_s)
        finally:
            self._return(connection)

    def _take(self, deadline_s: float) -> SyncConnection:
        with contextlib.suppress(IndexError):  # no other thread has taken the last one
            while True:
                connection = self._idle.pop()
                if not connection.is_stale:
                    return connection
                connection.close()
        return SyncConnection(self._address, deadline_s)

    def _return(self, connection: SyncConnection) -> None:
        if connection.is_usable and len(self._idle) < IDLE_LIMIT:
            self._idle.append(connection)
        else:
            connection.close()
