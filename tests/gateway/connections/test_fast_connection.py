"""The front over real sockets and real links: who serves what, memory given back, time kept, bounds held."""

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

import pytest
import uvloop

from gateway_double import FakeRouter, metadata, served
from harness.worker_peer import WorkerPeer, backend, form_of, route, spec
from mmsup.gateway import self_test
from mmsup.gateway.connections import aiohttp_connection, context, fast_connection
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


def posted(data: bytes, *lines: str) -> tuple[bytes, bytes]:
    """Head and body of a binary request of one UINT8 tensor."""
    words = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [len(data)], "datatype": "UINT8", "parameters": {"binary_data_size": len(data)}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    given = ["POST /v2/models/m/infer HTTP/1.1", "Host: x", *lines, f"{HEADER}: {len(words)}"]
    return "\r\n".join([*given, f"Content-Length: {len(words) + len(data)}", "", ""]).encode(), words + data


async def until(is_so: Callable[[], bool]) -> None:
    """Returns when it is so: these are states of ours without an event."""
    for _ in range(20_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to be so")


class House:
    """A gateway's HTTP face over one worker that is in the test's hands."""

    def __init__(self, made: Router, peer: WorkerPeer, at: GatewayServer, port: int) -> None:
        self.backend, self.peer, self.front, self.port = made, peer, at, port

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

    def fronts(self) -> list[fast_connection.FastConnection]:
        (listener,) = [each for _, each in self.front._listening]
        return list(listener.connection_limit.connections)

    async def gone(self) -> None:
        """Returns when no request is open and no slot in use."""
        await until(lambda: not self.backend.open_requests and not self.backend.memory_used_bytes)


def in_house(test: Callable[[House], Awaitable[None]], tmp_path: Path, **fields: object) -> None:
    async def run() -> None:
        described = spec(**fields)  # type: ignore[arg-type] # fields of ModelSpec
        fd = make_counter_table()
        with ThreadPoolExecutor(1) as executor, socket.create_server(("127.0.0.1", 0)) as sock:
            made = backend(executor)
            made.routes.put(route(described))
            hub = ZmqContext()
            peer = WorkerPeer(tmp_path, described)
            peer.link(made, hub)
            at = GatewayServer(made, [CounterTable(fd)], 0)
            await at.start("fast")
            port = sock.getsockname()[1]
            await at.listen(sock)
            built = House(made, peer, at, port)
            try:
                async with asyncio.timeout(30):
                    await test(built)
                    await built.gone()
            finally:
                await at.close(0.1)
                for link in list(made.links.values()):
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
def test_tensors_go_through_the_front_and_come_back_byte_for_byte(size: int, tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            for _again in range(4):
                head, body = posted(BIG[:size])
                writer.write(head + body)
                await house.echo()
                status, told = await read(reader)
                assert status == 200
                assert told.endswith(BIG[:size])
            (served,) = house.fronts()
            # Memory that is not there yet is waited for by aiohttp: once.
            assert served.served == (4 if size <= 4096 else 3)

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_body_in_many_pieces_is_the_fronts_from_its_head_on(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            head, body = posted(BIG[:3000])
            for at in range(0, len(body), 500):
                writer.write((head if at == 0 else b"") + body[at : at + 500])
                await asyncio.sleep(0.001)
            await house.echo()
            assert (await read(reader))[1].endswith(BIG[:3000])
            assert house.fronts()[0].served == 1

    in_house(run, tmp_path)


@pytest.mark.slow
def test_pipelined_requests_go_to_the_worker_one_by_one(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            head, body = posted(b"abc")
            writer.write((head + body) * 50)
            for _each in range(50):
                await house.echo()
                assert len(next(iter(house.backend.links.values())).in_flight) <= 1
            for _each in range(50):
                assert (await read(reader))[1].endswith(b"abc")

    in_house(run, tmp_path)


@pytest.mark.slow
def test_what_follows_a_request_in_work_is_bounded_and_read_on_after_it(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            head, body = posted(b"abc")
            count = 3 * fast_connection.REST_LIMIT_BYTES // len(head + body)
            writer.write((head + body) * count)
            request = await house.peer.request()
            await until(lambda: house.fronts()[0]._is_read_paused)
            assert len(house.fronts()[0]._rest) <= fast_connection.REST_LIMIT_BYTES + context.READ_BUFFER_BYTES
            house.peer.answer(request, b"abc")
            answers = asyncio.create_task(all_of(reader, count))
            for _each in range(count - 1):
                await house.echo()
            assert await answers == count

    in_house(run, tmp_path)


async def all_of(reader: asyncio.StreamReader, count: int) -> int:
    for _ in range(count):
        assert (await read(reader))[0] == 200
    return count


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"abc", BIG[:5000]], ids=["inline", "slot"])
def test_a_client_that_leaves_is_forgotten_at_the_worker_too(data: bytes, tmp_path: Path) -> None:
    async def run(house: House) -> None:
        for _again in range(2):
            async with house.client() as (_, writer):
                head, body = posted(data)
                writer.write(head + body)
                request = await house.peer.request()
            assert (await house.peer.drop()).id == request.id
            house.peer.answer(request, b"nobody listens")
            await house.gone()

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_client_that_leaves_in_its_body_or_before_its_reply_is_read_frees_the_memory(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        head, body = posted(BIG)
        async with house.client() as (reader, writer):
            writer.write(head + body)
            await house.echo()
            assert (await read(reader))[0] == 200
            writer.write(head + body[: len(body) // 2])
            await until(lambda: house.backend.open_requests > 0)
        await house.gone()
        async with house.client() as (_, writer):
            writer.write(head + body)
            await house.echo()

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_death_is_answered_with_its_verdict_and_the_next_worker_serves(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            head, body = posted(b"abc")
            writer.write(head + body)
            request = await house.peer.request()
            house.peer.page.request_started(request.id)
            house.backend.set_verdict((1, 1), make_error("worker_crashed", "killed by signal 9"))
            house.peer.kill()
            status, told = await read(reader)
            assert (status, json.loads(told)["code"]) == (503, "worker_crashed")

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_deadline_in_the_request_is_kept(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        async with house.client() as (reader, writer):
            body = b'{"parameters":{"timeout":50000},"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[1]}]}'
            writer.write(
                b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            request = await house.peer.request()
            status, told = await read(reader)
            assert (status, json.loads(told)["code"]) == (504, "deadline_exceeded")
            assert (await house.peer.drop()).id == request.id
            house.peer.say(InferReply(request.id, "cancelled", "dropped"))

    in_house(run, tmp_path)


# What must wait for a worker.


def text(**parameters: int) -> bytes:
    """A request in JSON with these parameters."""
    tensor = {"name": "x", "shape": [1], "datatype": "UINT8", "data": [1]}
    body = json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.slow
def test_the_timeout_of_a_request_holds_while_it_waits_for_a_worker(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        house.backend.unlink((1, 1))
        async with house.client() as (reader, writer):
            began = time.monotonic()
            writer.write(text(timeout=50_000))
            status, told = await read(reader)
            took_s = time.monotonic() - began
        assert (status, json.loads(told)["code"]) == (504, "deadline_exceeded")
        assert 0.05 <= took_s < house.backend.restart_grace_s / 2

    in_house(run, tmp_path)


@pytest.mark.slow
def test_requests_that_waited_for_a_worker_go_to_it_by_class_and_then_as_they_came(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        house.backend.unlink((1, 1))
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            for count, priority in enumerate((0, 7, 3, 90, 7, 0), 1):
                reader, writer = await stack.enter_async_context(house.client())
                writer.write(text(priority=priority, number=count))
                await until(lambda count=count: len(house.backend._waiters) == count)  # type: ignore[misc] # binds it
                clients.append(reader)
            peer = WorkerPeer(tmp_path, house.peer.said.spec, generation=2)
            hub = ZmqContext()
            peer.link(house.backend, hub)
            order = []
            for _ in clients:
                request = await peer.request()
                order.append(form_of(request).parameters["number"])
                peer.answer(request, b"\x01")
            assert [(await read(each))[0] for each in clients] == [200] * 6
            peer.close()
            hub.close()
        assert order == [3, 2, 5, 1, 6, 4]

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_body_that_cannot_be_read_is_told_so_before_a_worker_is_there(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        house.backend.unlink((1, 1))
        async with house.client() as (reader, writer):
            writer.write(text(timeout=-1))
            status, _ = await read(reader)
        assert status == 400

    in_house(run, tmp_path)


@pytest.mark.slow
def test_a_body_of_unknown_length_counts_against_its_models_bound_as_it_comes(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with house.client() as (_, held), house.client() as (reader, writer):
            held.write(head + piece)
            await until(lambda: house.backend.admission.open_bytes == 1 << 16)
            writer.write(head + piece)
            status, told = await read(reader)
            assert (status, json.loads(told)["code"]) == (503, "queue_full")
            assert house.backend.admission.open_bytes == 1 << 16

    in_house(run, tmp_path, max_queue_bytes=100_000)


# Time.


def meet(test: Callable[[FakeRouter, int], Awaitable[None]]) -> None:
    async def run() -> None:
        made = FakeRouter()
        made.serve("m", metadata(("x", "UINT8", (-1,))))
        async with served(made) as port:
            await test(made, port)
        assert made.unclosed_requests == 0

    uvloop.run(run())


def test_a_body_that_does_not_come_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "IDLE_S", 0.05)

    async def test(backend: FakeRouter, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = posted(b"abc")
        writer.write(head + body[:-1])
        told = await asyncio.wait_for(reader.read(), 10)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in told
        writer.close()
        await writer.wait_closed()

    meet(test)


def test_a_body_that_drips_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "TOTAL_S", 0.1)

    async def test(backend: FakeRouter, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, body = posted(bytes(4000))
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

    meet(test)


def test_an_idle_connection_is_closed_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_connection, "IDLE_S", 0.05)
    monkeypatch.setattr(aiohttp_connection, "IDLE_S", 0.05)

    async def test(backend: FakeRouter, port: int) -> None:
        for sent in (b"", b"".join(posted(b"abc")), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert (b"200 OK" in await asyncio.wait_for(reader.read(), 10)) == bool(sent)
            writer.close()
            await writer.wait_closed()

    meet(test)


def test_replies_that_nobody_reads_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "WRITE_TIMEOUT_S", 0.1)

    async def test(backend: FakeRouter, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(0)
            request = b"".join(posted(bytes(4000)))
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while True:
                        await loop.sock_sendall(sock, request)

    meet(test)


# Whether it is used.


@pytest.mark.parametrize("wanted", ["fast", "plain"])
def test_clients_meet_the_front_if_it_is_wanted(wanted: str) -> None:
    async def run() -> None:
        made = FakeRouter()
        async with served(made, wanted=wanted) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"mmsup_front_fallback 0.0" in (await read(reader))[1]
            writer.close()
            await writer.wait_closed()

    uvloop.run(run())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_its_own_test_passes(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        made = FakeRouter()
        assert not await self_test.run_self_test(made)
        made.threads.shutdown()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


def test_an_aiohttp_that_it_does_not_fit_is_served_alone_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aiohttp_connection.AiohttpConnection, "is_between_requests", lambda _: None)
    monkeypatch.setattr(self_test, "TEST_LIMIT_S", 0.2)

    async def run() -> None:
        made = FakeRouter()
        async with served(made) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"mmsup_front_fallback 1.0" in (await read(reader))[1]
            writer.close()
            await writer.wait_closed()

    uvloop.run(run())
    assert "the fast front is not used" in caplog.text


@pytest.mark.slow
def test_a_retired_gateway_answers_once_more_on_each_connection_and_accepts_no_other(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        head, body = posted(b"abc")
        async with (
            house.client() as (reader, writer),
            house.client() as (busy, busy_writer),
            house.client() as (idle, _),
        ):
            writer.write(head + body)
            await house.echo()
            assert (await read(reader))[0] == 200
            busy_writer.write(head + body)
            request = await house.peer.request()
            house.backend.retired = True
            house.front.on_heartbeat()
            assert not house.front.is_finished
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", house.port)
            house.peer.answer(request, b"abc")  # it came before, so nobody could be told that it is the last
            assert (await read(busy))[0] == 200
            for ear, mouth in ((reader, writer), (busy, busy_writer)):
                mouth.write(head + body)
                await house.echo()
                said = await ear.read()
                assert said.startswith(b"HTTP/1.1 200 ")
                assert b"\r\nconnection: close\r\n" in said.lower()
                assert said.endswith(b"abc")
            assert len(house.fronts()) == 1
            house.front._retired_s = time.monotonic() - fast_connection.IDLE_S - 10.0
            house.front.on_heartbeat()
            assert await idle.read() == b""
        await until(lambda: house.front.is_finished)

    in_house(run, tmp_path)
