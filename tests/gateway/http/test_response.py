"""Large responses over real sockets: memory is reused only when the client has read it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import numpy as np
import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import INFER, binary_body, run_with_session
from mmsup.gateway.http import response as answer
from mmsup.gateway.protocol.binary_tensors import HEADER

pytestmark = pytest.mark.usefixtures("loop_factory")


def test_a_client_that_does_not_read_its_response_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "WRITE_TIMEOUT_S", 0.1)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        data = bytes(32 << 20)
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        base = session._base_url
        assert base is not None
        reader, writer = await asyncio.open_connection(base.host, base.port, limit=1 << 16)
        lengths = f"Content-Length: {len(body)}\r\n{HEADER}: {headers[HEADER]}"
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

        await asyncio.wait_for(backend.request_closed.wait(), 20)
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read(-1)) < len(body)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    run_with_session(test)


def test_a_response_read_slowly_is_complete_although_its_memory_is_reused_at_once() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        data = np.random.default_rng(1).integers(0, 256, 8 << 20, np.uint8).tobytes()
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        lengths = f"Content-Length: {len(body)}\r\n{HEADER}: {headers[HEADER]}"
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{lengths}\r\n\r\n"
        base, loop = session._base_url, asyncio.get_running_loop()
        assert base is not None
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(0)
            await loop.sock_connect(sock, (base.host, base.port))
            await loop.sock_sendall(sock, head.encode() + body)
            told = bytearray()
            while (end := told.find(b"\r\n\r\n")) < 0 or len(told) < end + 4 + len(data):
                told += await loop.sock_recv(sock, 2048)
        assert told.endswith(data)

    run_with_session(test)
