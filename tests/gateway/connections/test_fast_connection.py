"""Fast connections over real sockets and links: who serves which request, memory, time limits, bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from fake_router import FakeRouter, metadata, served
from harness.worker_peer import WorkerPeer, backend, form_of, route, spec
from mmsup.gateway import self_test
from mmsup.gateway.connections import aiohttp_connection, connection_state, context, fast_connection, request_pipeline
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http import request_body, response
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.gateway.server import GatewayServer
from mmsup.ipc.errors import make_error
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.messages.data import Infer, InferReply
from mmsup.ipc.transport.zeromq_channel import ZmqContext

BIG = bytes(range(256)) * 4000
"""A megabyte."""


def infer_request(data: bytes, *lines: str) -> tuple[bytes, bytes]:
    """Head and body of a binary request of one UINT8 tensor."""
    words = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [len(data)], "datatype": "UINT8", "parameters": {"binary_data_size": len(data)}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    given = ["POST /v2/models/m/infer HTTP/1.1", "Host: localhost", *lines, f"{HEADER}: {len(words)}"]
    return "\r\n".join([*given, f"Content-Length: {len(words) + len(data)}", "", ""]).encode(), words + data


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when it is so: these are states of ours without an event."""
    for _ in range(20_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to be so")


class GatewayHarness:
    """A gateway's HTTP face over one worker that is in the test's hands."""

    def __init__(self, made: Router, peer: WorkerPeer, at: GatewayServer, port: int) -> None:
        self.router, self.peer, self.server, self.port = made, peer, at, port

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def echo(self) -> Infer:
        """Answer the next request with its own bytes."""
        request = await self.peer.request()
        data = self.peer.bytes_of(request.locations[0])
        if request.output_buffer is not None and request.output_buffer[2] >= len(data):
            self.peer.answer_in(request.id, request.output_buffer[0], request.output_buffer[1], data)
        elif len(data) <= 4096:
            self.peer.answer(request, data)
        else:
            self.peer.say(InferReply(request.id, needed_bytes=len(data)))
            grant = await self.peer.grant()
            self.peer.answer_in(request.id, grant.segment, grant.offset, data)
        return request

    def connections(self) -> list[fast_connection.FastConnection]:
        (listener,) = [each for _, each in self.server._listening if isinstance(each, HttpListener)]
        return list(listener.connection_limit.connections)

    async def gone(self) -> None:
        """Returns when no request is open and no slot in use."""
        await until(lambda: not self.router.admission.open_requests and not self.router.links.used_bytes())


async def no_controller(command: str, arguments: dict[str, Any]) -> Any:  # JSON, by command
    raise AssertionError(command)


def run_with_gateway(test: Callable[[GatewayHarness], Awaitable[None]], tmp_path: Path, **fields: object) -> None:
    async def run() -> None:
        described = spec(**fields)  # type: ignore[arg-type] # fields of ModelSpec
        fd = make_counter_table()
        with ThreadPoolExecutor(1) as executor, socket.create_server(("127.0.0.1", 0)) as sock:
            made = backend(executor)
            made.routes.put(route(described))
            hub = ZmqContext()
            peer = WorkerPeer(tmp_path, described)
            peer.link(made, hub)
            at = GatewayServer(made, no_controller, [CounterTable(fd)], 0)
            await at.start("fast")
            port = sock.getsockname()[1]
            await at.listen(sock)
            built = GatewayHarness(made, peer, at, port)
            try:
                async with asyncio.timeout(30):
                    await test(built)
                    await built.gone()
            finally:
                await at.close(0.1)
                for link in list(made.links.by_worker.values()):
                    link.close()
                hub.close()
                peer.close()
        os.close(fd)

    uvloop.run(run())


async def read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one reply."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
    return int(head.split(" ")[1]), await reader.readexactly(int(lines["Content-Length"]))


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 5000, len(BIG)])
def test_tensors_round_trip_byte_for_byte(size: int, tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            for _again in range(4):
                head, body = infer_request(BIG[:size])
                writer.write(head + body)
                await gateway.echo()
                status, answer = await read(reader)
                assert status == 200
                assert answer.endswith(BIG[:size])
            (served,) = gateway.connections()
            # Memory that is not there yet is waited for by aiohttp: once.
            assert served.requests.served == (4 if size <= 4096 else 3)

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_a_body_in_many_pieces_is_served_without_aiohttp(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            head, body = infer_request(BIG[:3000])
            for at in range(0, len(body), 500):
                writer.write((head if at == 0 else b"") + body[at : at + 500])
                await asyncio.sleep(0.001)
            await gateway.echo()
            assert (await read(reader))[1].endswith(BIG[:3000])
            assert gateway.connections()[0].requests.served == 1

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_pipelined_requests_go_to_the_worker_one_by_one(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            head, body = infer_request(b"abc")
            writer.write((head + body) * 50)
            for _each in range(50):
                await gateway.echo()
                assert len(next(iter(gateway.router.links.by_worker.values())).in_flight.requests) <= 1
            for _each in range(50):
                assert (await read(reader))[1].endswith(b"abc")

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_bytes_behind_a_request_in_work_are_bounded_and_read_after_it(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            head, body = infer_request(b"abc")
            count = 3 * request_pipeline.PENDING_LIMIT_BYTES // len(head + body)
            writer.write((head + body) * count)
            request = await gateway.peer.request()
            await until(lambda: gateway.connections()[0].requests._is_read_paused)
            limit = request_pipeline.PENDING_LIMIT_BYTES + context.READ_BUFFER_BYTES
            assert len(gateway.connections()[0].requests.pending) <= limit
            gateway.peer.answer(request, b"abc")
            answers = asyncio.create_task(all_of(reader, count))
            for _each in range(count - 1):
                await gateway.echo()
            assert await answers == count

    run_with_gateway(run, tmp_path)


async def all_of(reader: asyncio.StreamReader, count: int) -> int:
    for _ in range(count):
        assert (await read(reader))[0] == 200
    return count


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"abc", BIG[:5000]], ids=["inline", "slot"])
def test_the_request_of_a_client_that_leaves_is_cancelled_at_the_worker(data: bytes, tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        for _again in range(2):
            async with gateway.client() as (_, writer):
                head, body = infer_request(data)
                writer.write(head + body)
                request = await gateway.peer.request()
            assert (await gateway.peer.drop()).id == request.id
            gateway.peer.answer(request, b"nobody listens")
            await gateway.gone()

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_a_client_that_leaves_during_its_body_or_response_frees_the_memory(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        head, body = infer_request(BIG)
        async with gateway.client() as (reader, writer):
            writer.write(head + body)
            await gateway.echo()
            assert (await read(reader))[0] == 200
            writer.write(head + body[: len(body) // 2])
            await until(lambda: gateway.router.admission.open_requests > 0)
        await gateway.gone()
        async with gateway.client() as (_, writer):
            writer.write(head + body)
            await gateway.echo()

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_a_request_whose_worker_died_is_answered_with_the_verdict(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            head, body = infer_request(b"abc")
            writer.write(head + body)
            request = await gateway.peer.request()
            gateway.peer.page.request_started(request.id)
            gateway.router.verdicts.set((1, 1), make_error("worker_crashed", "killed by signal 9"))
            gateway.peer.kill()
            status, answer = await read(reader)
            assert (status, json.loads(answer)["code"]) == (503, "worker_crashed")

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_the_deadline_in_a_request_is_enforced(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        async with gateway.client() as (reader, writer):
            body = b'{"parameters":{"timeout":50000},"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[1]}]}'
            writer.write(
                b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            request = await gateway.peer.request()
            status, answer = await read(reader)
            assert (status, json.loads(answer)["code"]) == (504, "deadline_exceeded")
            assert (await gateway.peer.drop()).id == request.id
            gateway.peer.say(InferReply(request.id, "cancelled", "dropped"))

    run_with_gateway(run, tmp_path)


# What must wait for a worker.


def text(**parameters: int) -> bytes:
    """A request in JSON with these parameters."""
    tensor = {"name": "x", "shape": [1], "datatype": "UINT8", "data": [1]}
    body = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.slow
def test_the_timeout_of_a_request_applies_while_it_waits_for_a_worker(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        gateway.router.links.stop_routing((1, 1))
        async with gateway.client() as (reader, writer):
            began = time.monotonic()
            writer.write(text(timeout=50_000))
            status, answer = await read(reader)
            took_s = time.monotonic() - began
        assert (status, json.loads(answer)["code"]) == (504, "deadline_exceeded")
        assert 0.05 <= took_s < gateway.router.configuration.restart_grace_s / 2

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_requests_that_waited_for_a_worker_are_sent_by_priority_and_then_in_order(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        gateway.router.links.stop_routing((1, 1))
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for count, priority in enumerate((0, 7, 3, 90, 7, 0), 1):
                reader, writer = await stack.enter_async_context(gateway.client())
                writer.write(text(priority=priority, number=count))
                await until(lambda count=count: len(gateway.router.waiters.priorities) == count)  # type: ignore[misc] # binds it
                clients.append(reader)
            peer = WorkerPeer(tmp_path, gateway.peer.said.spec, generation=2)
            hub = ZmqContext()
            peer.link(gateway.router, hub)
            order = []
            for _ in clients:
                request = await peer.request()
                order.append(form_of(request).parameters["number"])
                peer.answer(request, b"\x01")
            assert [(await read(each))[0] for each in clients] == [200] * 6
            peer.close()
            hub.close()
        assert order == [3, 2, 5, 1, 6, 4]

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_an_invalid_body_is_refused_before_a_worker_is_available(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        gateway.router.links.stop_routing((1, 1))
        async with gateway.client() as (reader, writer):
            writer.write(text(timeout=-1))
            status, _ = await read(reader)
        assert status == 400

    run_with_gateway(run, tmp_path)


@pytest.mark.slow
def test_a_body_of_unknown_length_counts_toward_the_limit_of_its_model_as_it_arrives(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with gateway.client() as (_, held), gateway.client() as (reader, writer):
            held.write(head + piece)
            await until(lambda: gateway.router.admission.open_bytes == 1 << 16)
            writer.write(head + piece)
            status, answer = await read(reader)
            assert (status, json.loads(answer)["code"]) == (503, "queue_full")
            assert gateway.router.admission.open_bytes == 1 << 16

    run_with_gateway(run, tmp_path, max_queue_bytes=100_000)


# Time.


def run_with_router(test: Callable[[FakeRouter, int], Awaitable[None]]) -> None:
    async def run() -> None:
        made = FakeRouter()
        made.serve("m", metadata(("x", "UINT8", (-1,))))
        async with served(made) as port:
            await test(made, port)
        assert made.unclosed_requests == 0

    uvloop.run(run())


def test_a_body_that_does_not_arrive_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "IDLE_S", 0.05)

    async def test(backend: FakeRouter, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = infer_request(b"abc")
        writer.write(head + body[:-1])
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in answer
        writer.close()
        await writer.wait_closed()

    run_with_router(test)


def test_a_body_that_arrives_too_slowly_is_answered_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "TOTAL_S", 0.1)

    async def test(backend: FakeRouter, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = infer_request(bytes(4000))
        writer.write(head)
        answered = asyncio.create_task(reader.read())
        for byte in body:
            if answered.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.001)
        assert (await answered).startswith(b"HTTP/1.1 408 ")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    run_with_router(test)


def test_an_idle_connection_is_closed_after_the_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_state, "IDLE_S", 0.05)

    async def test(backend: FakeRouter, port: int) -> None:
        for sent in (b"", b"".join(infer_request(b"abc")), b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert (b"200 OK" in await asyncio.wait_for(reader.read(), 10)) == bool(sent)
            writer.close()
            await writer.wait_closed()

    run_with_router(test)


def test_a_client_that_does_not_read_its_responses_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "WRITE_TIMEOUT_S", 0.1)

    async def test(backend: FakeRouter, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(0)
            request = b"".join(infer_request(bytes(4000)))
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        await loop.sock_sendall(sock, request)

    run_with_router(test)


# Whether it is used.


@pytest.mark.parametrize("wanted", ["fast", "plain"])
def test_fast_connections_are_used_if_configured(wanted: str) -> None:
    async def run() -> None:
        made = FakeRouter()
        async with served(made, front=wanted) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"mmsup_front_fallback 0.0" in (await read(reader))[1]
            writer.close()
            await writer.wait_closed()

    uvloop.run(run())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_the_self_test_passes(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        made = FakeRouter()
        assert not await self_test.run_self_test(made)
        made.threads.shutdown()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


def test_aiohttp_serves_alone_if_the_self_test_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aiohttp_connection.AiohttpConnection, "is_between_requests", lambda _: None)
    monkeypatch.setattr(self_test, "TEST_LIMIT_S", 0.2)

    async def run() -> None:
        made = FakeRouter()
        async with served(made) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"mmsup_front_fallback 1.0" in (await read(reader))[1]
            writer.close()
            await writer.wait_closed()

    uvloop.run(run())
    assert "the fast path is not used" in caplog.text


@pytest.mark.slow
def test_a_retired_gateway_answers_once_more_on_each_connection_and_accepts_none(tmp_path: Path) -> None:
    async def run(gateway: GatewayHarness) -> None:
        head, body = infer_request(b"abc")
        async with (
            gateway.client() as (reader, writer),
            gateway.client() as (busy, busy_writer),
            gateway.client() as (idle, _),
        ):
            writer.write(head + body)
            await gateway.echo()
            assert (await read(reader))[0] == 200
            busy_writer.write(head + body)
            request = await gateway.peer.request()
            gateway.router.status.retire()
            gateway.server.on_heartbeat()
            assert not gateway.server.is_finished
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", gateway.port)
            gateway.peer.answer(
                request, b"abc"
            )  # it came before, so its response could not announce that it is the last
            assert (await read(busy))[0] == 200
            for source, sink in ((reader, writer), (busy, busy_writer)):
                sink.write(head + body)
                await gateway.echo()
                last = await source.read()
                assert last.startswith(b"HTTP/1.1 200 ")
                assert b"\r\nconnection: close\r\n" in last.lower()
                assert last.endswith(b"abc")
            assert len(gateway.connections()) == 1
            gateway.server._retired_s = time.monotonic() - connection_state.IDLE_S - 10.0
            gateway.server.on_heartbeat()
            assert await idle.read() == b""
        await until(lambda: gateway.server.is_finished)

    run_with_gateway(run, tmp_path)
