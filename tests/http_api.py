"""The HTTP API of a gateway over real sockets, with a fake router behind it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiohttp import ClientResponse, ClientSession

from fake_router import FakeRouter, metadata, served
from mmsup.gateway.protocol.binary_tensors import HEADER

X = {"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}
INFER = "/v2/models/m/infer"
LOOP: list[Callable[[], asyncio.AbstractEventLoop]] = []


def make_router(max_body_bytes: int = 64 << 20) -> FakeRouter:
    backend = FakeRouter(max_body_bytes)
    backend.serve("m", metadata(("X", "FP32", (-1,))))
    return backend


def run_with_session(
    test: Callable[[FakeRouter, ClientSession], Awaitable[None]], backend: FakeRouter | None = None, **where: Any
) -> None:
    """Run a test against a backend that is served."""

    async def run() -> None:
        made = backend or make_router()
        async with served(made, **where) as port, ClientSession(f"http://127.0.0.1:{port}") as session:
            await test(made, session)
        assert made.unclosed_requests == 0

    with asyncio.Runner(loop_factory=LOOP[0]) as runner:
        runner.run(run())


@contextlib.asynccontextmanager
async def bare_connection(session: ClientSession) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the same server."""
    base = session._base_url
    assert base is not None
    reader, writer = await asyncio.open_connection(base.host, base.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def json_of(response: ClientResponse) -> dict[str, Any]:
    made = await response.json()
    assert isinstance(made, dict)
    return made


def binary_body(tensors: list[tuple[str, str, list[int], bytes]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """An infer request all in binary, both ways."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in tensors
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}, **more}).encode()
    return head + b"".join(each[3] for each in tensors), {HEADER: str(len(head))}


async def blobs_of(response: ClientResponse) -> dict[str, bytes]:
    body = await response.read()
    assert response.content_type == "application/octet-stream"
    at = int(response.headers[HEADER])
    made: dict[str, bytes] = {}
    for output in json.loads(body[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        made[output["name"]] = body[at : at + size]
        at += size
    assert at == len(body)
    return made
