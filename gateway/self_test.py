"""Whether the front and the aiohttp beside it fit together: tried at every start, on a socket pair.

The front rests on private names of aiohttp. One connection asks for an inference (of a model that does not exist: the
front refuses it by itself), then for something of aiohttp's, then for an inference again, in pieces and pipelined; all
answers must come, and from where they should. Nothing of it is counted.
"""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.aiohttp_connection import HttpListener
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import FastConnection
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
    (_FAST[:-1], (404,), 2),  # refused before its body is there: aiohttp reads the rest
    (_FAST[-1:] + _SLOW, (200,), 2),
    (_FAST + _SLOW + _FAST, (404, 200, 404), 4),
    (_ENDING, (200,), 4),
)
"""What is sent, the statuses of what comes, and how many requests the front has answered by then."""


async def run_self_test(backend: Router) -> str:
    """Why the front cannot be used, or an empty text."""
    tally = make_counter_table()
    try:
        with ThreadPoolExecutor(1) as documents:
            core = InferHandler(backend, RequestCounters([CounterTable(tally)], 0), documents)
            listener = HttpListener(
                HttpApp(core).serve, is_local=True, shared=ConnectionContext(core, asyncio.get_running_loop())
            )
            try:
                async with asyncio.timeout(TEST_LIMIT_S):
                    await _run_steps(listener)
            finally:
                listener.pre_shutdown()
                await listener.shutdown(CLOSE_LIMIT_S)
    except TimeoutError:
        return f"its own test did not end within {TEST_LIMIT_S:.0f} s"
    except Exception as error:  # noqa: BLE001 - whatever it is, plain aiohttp serves
        return f"its own test failed: {type(error).__name__}: {error}"
    finally:
        os.close(tally)
    return ""


async def _run_steps(listener: HttpListener) -> None:
    ours, far = socket.socketpair()
    loop = asyncio.get_running_loop()
    _, front = await loop.connect_accepted_socket(listener, ours)
    assert isinstance(front, FastConnection), "the listener made another kind of connection"
    reader, writer = await asyncio.open_connection(sock=far)
    try:
        for number, (sent, statuses, served) in enumerate(_STEPS, 1):
            writer.write(sent)
            for status in statuses:
                line = await _read_response(reader)
                assert line.startswith(b"HTTP/1.1 %d " % status), f"step {number}: {line!r}, not {status}"
            assert front.served == served, f"step {number}: {front.served} requests by the front, not {served}"
        assert not await reader.read(), "more came than was asked for"
    finally:
        writer.close()
        await writer.wait_closed()


async def _read_response(reader: asyncio.StreamReader) -> bytes:
    """The first line of one reply; the rest is read over."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(int(lengths[0].partition(b":")[2]))
    return head.split(b"\r\n")[0]
