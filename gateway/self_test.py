"""Tests at every start whether fast connections and the aiohttp handler beside them work together, on a socket pair.

Fast connections use private names of aiohttp. One connection sends an inference (to a model that does not exist,
which the fast path refuses by itself), then a request that aiohttp serves, then inferences again, in pieces and
pipelined; all responses must arrive, each from the right side. None of it is counted in the server's statistics.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import FastConnection
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.ipc.memory.counters import CounterTable, make_counter_table

TEST_LIMIT_S: Final = 5.0
CLOSE_LIMIT_S: Final = 0.1
_HEAD: Final = b"Host: selftest\r\n"
_FAST: Final = b"POST /v2/models/selftest/infer HTTP/1.1\r\n" + _HEAD + b"Content-Length: 2\r\n\r\n{}"
_SLOW: Final = b"GET /livez HTTP/1.1\r\n" + _HEAD + b"\r\n"
_ENDING: Final = b"GET /livez HTTP/1.1\r\nConnection: close\r\n" + _HEAD + b"\r\n"
_STEPS: Final = (
    (_FAST, (404,), 1),
    (_SLOW, (200,), 1),
    (_FAST, (404,), 2),
    (_FAST[:-1], (404,), 2),  # refused before its body has arrived: aiohttp reads the rest
    (_FAST[-1:] + _SLOW, (200,), 2),
    (_FAST + _SLOW + _FAST, (404, 200, 404), 4),
    (_ENDING, (200,), 4),
)
"""What is sent, the statuses of the responses, and how many requests the fast path has answered by then."""


async def run_self_test(router: Router) -> str:
    """Why the fast path cannot be used, or an empty text."""
    table = make_counter_table()
    try:
        with ThreadPoolExecutor(1) as executor:
            handler = InferHandler(router, RequestCounters([CounterTable(table)], 0), executor)
            context = ConnectionContext(handler, asyncio.get_running_loop())
            listener = HttpListener(HttpApp(handler, _no_controller).serve, is_local=True, context=context)
            try:
                async with asyncio.timeout(TEST_LIMIT_S):
                    await _run_steps(listener)
            finally:
                listener.pre_shutdown()
                await listener.shutdown(CLOSE_LIMIT_S)
    except TimeoutError:
        return f"its self-test did not end within {TEST_LIMIT_S:.0f} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, plain aiohttp serves
        return f"its self-test failed: {type(error).__name__}: {error}"
    finally:
        os.close(table)
    return ""


async def _no_controller(command: str, arguments: dict[str, Any]) -> Any:  # JSON, by command
    raise AssertionError(f"the self-test sends no command to the controller, not {command} {arguments}")


async def _run_steps(listener: HttpListener) -> None:
    near, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, connection = await loop.connect_accepted_socket(listener, near)
    assert isinstance(connection, FastConnection), "the listener made another kind of connection"
    reader, writer = await asyncio.open_connection(sock=far)
    requests = connection.requests
    try:
        for number, (sent, statuses, served) in enumerate(_STEPS, 1):
            writer.write(sent)
            for status in statuses:
                line = await _read_response(reader)
                assert line.startswith(b"HTTP/1.1 %d " % status), f"step {number}: {line!r}, not {status}"
            assert requests.served == served, f"step {number}: {requests.served} fast requests, not {served}"
        assert not await reader.read(), "more responses came than requests were sent"
    finally:
        writer.close()
        await writer.wait_closed()


async def _read_response(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0].partition(b":")[2]))
    return head.split(b"\r\n")[0]
