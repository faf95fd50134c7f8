"""The HTTP face over real sockets: statuses, headers, bodies both ways, bounds in bytes and in time."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import ml_dtypes
import numpy as np
import pytest
import uvloop
from aiohttp import ClientResponse, ClientSession

from gateway_double import FakeRouter, Tensor, metadata, served
from mmsup.gateway.connections import aiohttp_connection, connection_limit
from mmsup.gateway.http import request_body
from mmsup.gateway.http import response as answer
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.ipc.errors import ModelError, ServerError, WorkerError
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, as_bytes

X = {"name": "X", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}
INFER = "/v2/models/m/infer"
LOOP: list[Callable[[], asyncio.AbstractEventLoop]] = []


def house(max_body_bytes: int = 64 << 20) -> FakeRouter:
    backend = FakeRouter(max_body_bytes)
    backend.serve("m", metadata(("X", "FP32", (-1,))))
    return backend


def meet(
    test: Callable[[FakeRouter, ClientSession], Awaitable[None]], backend: FakeRouter | None = None, **where: Any
) -> None:
    """Run a test against a backend that is served."""

    async def run() -> None:
        made = backend or house()
        async with served(made, **where) as port, ClientSession(f"http://127.0.0.1:{port}") as session:
            await test(made, session)
        assert made.unclosed_requests == 0

    with asyncio.Runner(loop_factory=LOOP[0]) as runner:
        runner.run(run())


@pytest.fixture(autouse=True, params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> None:
    """Everything here holds on both loops: they differ in what a transport keeps of a write."""
    LOOP[:] = [request.param]


@contextlib.asynccontextmanager
async def raw(session: ClientSession) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
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


async def said(response: ClientResponse) -> dict[str, Any]:
    made = await response.json()
    assert isinstance(made, dict)
    return made


# What is there.


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/health/live", {"live": True}),
        ("/livez", {"live": True}),
        ("/healthz", {"live": True}),
        ("/v2/health/ready", {"ready": True, "live": True}),
        ("/readyz", {"ready": True, "live": True}),
        ("/v2/models", {"models": ["m"]}),
        ("/v2/models/m/ready", {"name": "m", "ready": True, "state": "ready"}),
    ],
)
def test_health_and_lists_answer_json_and_head_says_the_same_without_it(path: str, told: dict[str, Any]) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get(path) as response:
            assert (response.status, await said(response)) == (200, told)
            assert response.headers["Server"] == "mmsup"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            length = response.headers["Content-Length"]
        async with session.head(path) as response:
            assert (response.status, await response.read(), response.headers["Content-Length"]) == (200, b"", length)

    meet(test)


def test_a_server_that_is_not_ready_says_why() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.set_readiness(ready=False, reason="loading m")
        async with session.get("/v2/health/ready") as response:
            assert response.status == 503
            assert await said(response) == {"ready": False, "live": True, "error": "loading m"}

    meet(test)


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/stats"]
)
def test_descriptions_are_json_objects(path: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get(path) as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            assert await said(response)

    meet(test)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_path"),
        ("GET", "/v2/", 404, "unknown_path"),
        ("GET", "/v2/models/zz", 404, "unknown_model"),
        ("POST", "/v2/models/zz/infer", 404, "unknown_model"),
        ("GET", "/v2/models/m/versions/9", 404, "unknown_version"),
        ("GET", "/v2/models/m/versions/stable/ready", 404, "bad_version"),
        ("POST", "/v2/models/m/generate", 501, "not_implemented"),
        ("POST", "/v2/systemsharedmemory/region/r/register", 501, "not_implemented"),
        ("GET", "/v2/logging", 501, "not_implemented"),
        ("GET", "/v2/trace/setting", 501, "not_implemented"),
        ("POST", "/v2/repository/other/index", 501, "not_implemented"),
    ],
)
def test_what_is_not_there_is_told_in_json(method: str, path: str, status: int, code: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.request(method, path) as response:
            told = await said(response)
            assert (response.status, told["code"]) == (status, code)
            assert told["error"]

    meet(test)


def test_another_method_is_405_and_allow_says_which() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.delete(INFER) as response:
            assert (response.status, response.headers["Allow"]) == (405, "OPTIONS, POST")
            assert (await said(response))["code"] == "method_not_allowed"
        async with session.options("/v2") as response:
            assert (response.status, response.headers["Allow"]) == (200, "GET, HEAD, OPTIONS")

    meet(test)


def test_clients_may_unregister_memory_that_was_never_there() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        for path in ("systemsharedmemory", "cudasharedmemory", "systemsharedmemory/region/r"):
            async with session.post(f"/v2/{path}/unregister") as response:
                assert (response.status, await response.read()) == (200, b"")
        async with session.get("/v2/systemsharedmemory/status") as response:
            assert await response.json() == []

    meet(test)


# Control.


def test_index_load_and_unload_are_the_brains() -> None:
    rows = [{"name": "m", "version": "1", "state": "READY", "reason": ""}]

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers |= {"index": rows, "load": {"name": "m"}, "unload": {}}
        async with session.post("/v2/repository/index", json={"ready": True}) as response:
            assert await response.json() == rows
        async with session.post("/v2/repository/models/m/load") as response:
            assert (response.status, await response.read()) == (200, b"")
        body = {"parameters": {"unload_dependents": True}}
        async with session.post("/v2/repository/models/m/unload", json=body) as response:
            assert (response.status, await response.read()) == (200, b"")
        assert backend.asked == [
            ("index", {"ready": True}),
            ("load", {"name": "m"}),
            ("unload", {"name": "m", **body}),
        ]

    meet(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"ready":1}', 400),
        (b"", 200),
        (b"{}", 200),
    ],
)
def test_a_control_calls_body_is_checked(body: bytes, status: int) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["index"] = []
        async with session.post("/v2/repository/index", data=body) as response:
            assert response.status == status

    meet(test)


def test_files_are_not_taken_over_the_wire() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        body = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
        async with session.post("/v2/repository/models/m/load", json=body) as response:
            assert response.status == 403
            assert (await said(response))["error"].startswith("failed to load 'm'")

    meet(test)


def test_a_refused_load_has_the_brains_words() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["load"] = ModelError("load_failed", "failed to load 'm': no such op", model="m")
        async with session.post("/v2/repository/models/m/load") as response:
            assert response.status == 500
            assert (await said(response))["error"] == "failed to load 'm': no such op"

    meet(test)


def test_control_is_refused_on_a_listener_that_others_can_reach() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        for path in ("/v2/repository/models/m/load", "/v2/repository/models/m/unload", "/v2/logging"):
            async with session.post(path) as response:
                assert (response.status, (await said(response))["code"]) == (403, "forbidden")
        async with session.get("/v2/health/ready") as response:
            assert response.status == 200
        assert backend.asked == []

    meet(test, host="0.0.0.0")


# Inference.


def test_json_comes_in_and_goes_out() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, json={"id": "a", "inputs": [X]}, headers={"X-Request-Id": "h1"}) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (200, "h1")
            assert await said(response) == {
                "model_name": "m",
                "model_version": "1",
                "id": "a",
                "outputs": [{"name": "X_out", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5]}],
            }

    meet(test)


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


@pytest.mark.parametrize("datatype", list(NUMPY))
def test_every_datatype_makes_the_round_trip_in_binary(datatype: str) -> None:
    if datatype == "BYTES":
        data = pack_strings([b"\xff\0", b"", b"text"])
    else:
        data = bytes(as_bytes(np.array([0, 1, 2]).astype(NUMPY[datatype])))
    backend = house()
    backend.serve("t", metadata(("A", datatype, (-1,)), ("B", datatype, (3,))))

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("A", datatype, [3], data), ("B", datatype, [3], data)])
        async with session.post("/v2/models/t/infer", data=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert await blobs_of(response) == {"A_out": data, "B_out": data}

    meet(test, backend)


def test_a_narrow_float_keeps_its_bits() -> None:
    data = np.array([1.5, -2, np.nan], ml_dtypes.bfloat16).tobytes()
    backend = house()
    backend.serve("t", metadata(("A", "BF16", (-1,))))

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("A", "BF16", [3], data)])
        async with session.post("/v2/models/t/infer", data=body, headers=headers) as response:
            assert await blobs_of(response) == {"A_out": data}

    meet(test, backend)


def test_a_raw_request_is_answered_in_binary() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        data = struct.pack("<3f", 1, 2, 3)
        async with session.post(INFER, data=data, headers={HEADER: "0"}) as response:
            assert await blobs_of(response) == {"X_out": data}

    meet(test)


def test_a_large_tensor_comes_back_as_it_went_also_when_its_memory_is_used_again_at_once() -> None:
    data = np.random.default_rng(0).integers(0, 256, 12_600_000, np.uint8).tobytes()

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        for _again in range(3):
            async with session.post(INFER, data=io.BytesIO(body), headers=headers) as response:
                assert (await blobs_of(response))["X_out"] == data

    meet(test)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_compressed_body_is_read(coding: str, chunked: bool) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        data = struct.pack("<40000f", *range(40000))
        plain, headers = binary_body([("X", "FP32", [40000], data)])
        body = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1000):
                yield body[at : at + 1000]

        sent = pieces() if chunked else body
        async with session.post(INFER, data=sent, headers={**headers, "Content-Encoding": coding}) as response:
            assert (await blobs_of(response))["X_out"] == data

    meet(test)


def test_a_chunked_body_is_read_to_its_end() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for byte in json.dumps({"inputs": [X]}).encode():
                yield bytes([byte])

        async with session.post(INFER, data=pieces()) as response:
            assert response.status == 200

    meet(test)


@pytest.mark.parametrize(
    ("headers", "body", "status", "says"),
    [
        ({}, b"", 400, "the document is empty"),
        ({}, b"{", 400, "failed to parse the request JSON buffer"),
        ({HEADER: "-1"}, b"{}", 400, "no number of bytes"),
        ({HEADER: "3"}, b"{}", 400, "is 3, but the body has 2 bytes"),
        ({HEADER: "99999999999999999999999"}, b"{}", 400, "no number of bytes"),
        ({"Content-Encoding": "br"}, b"{}", 415, "use gzip or deflate"),
        ({"Content-Encoding": "gzip, gzip"}, b"{}", 415, "use gzip or deflate"),
        ({"Content-Encoding": "gzip"}, b"{}", 400, "is not gzip"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0)[:-4], 400, "cut off"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}", mtime=0) + b"x", 400, "something follows"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "application/python-pickle"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "text/xml"}, b"{}", 415, "is not read here"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b'{"inputs":[]}', 400, "expected 1 inputs"),
    ],
)
def test_a_body_that_cannot_be_read_is_its_callers_fault(
    headers: dict[str, str], body: bytes, status: int, says: str
) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, data=body, headers=headers) as response:
            told = await said(response)
            assert response.status == status
            assert says in told["error"]
        assert backend.calls == []

    meet(test)


def test_an_error_names_the_request_by_the_id_that_its_json_gave() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, json={"id": "j1", "inputs": []}, headers={"X-Request-Id": "h1"}) as response:
            assert (await said(response))["request_id"] == "j1"
            assert response.headers["X-Request-Id"] == "h1"
        async with session.post(INFER, data=b"{", headers={"X-Request-Id": "h1"}) as response:
            assert (await said(response))["request_id"] == "h1"

    meet(test)


def test_a_body_over_the_limit_is_refused_by_its_head() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, data=bytes(2000)) as response:
            assert response.status == 413
            assert "2000 bytes exceeds the maximum allowed 1000 bytes" in (await said(response))["error"]
            assert response.headers["Connection"] == "close"

    meet(test, house(max_body_bytes=1000))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_inflating_stops_at_the_limit(coding: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        bomb = gzip.compress(bytes(64 << 20)) if coding == "gzip" else zlib.compress(bytes(64 << 20))
        async with session.post(INFER, data=bomb, headers={"Content-Encoding": coding}) as response:
            assert response.status == 413

    meet(test, house(max_body_bytes=1 << 20))


def test_chunks_without_end_are_refused_at_the_limit() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _piece in range(40):
                yield bytes(1000)

        async with session.post(INFER, data=pieces()) as response:
            assert response.status == 413

    meet(test, house(max_body_bytes=10_000))


def test_the_deadline_in_the_request_is_brought_forward_and_never_put_off() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        for timeout in (5_000_000, 2**62):
            async with session.post(INFER, json={"inputs": [X], "parameters": {"timeout": timeout}}) as response:
                assert response.status == 200
        short, long = [each.deadline_ns for each in backend.calls]
        assert short < long == 1 << 62

    meet(test)


def test_parameters_reach_the_model_without_the_reserved_ones() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        body = {"inputs": [X], "parameters": {"timeout": 0, "priority": 2, "beam": 4, "binary_data_output": False}}
        async with session.post(INFER, json=body) as response:
            assert response.status == 200
        assert backend.calls[0].parameters == {"beam": 4}

    meet(test)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WorkerError("worker_crashed", "killed by signal 9"), 503),
        (WorkerError("worker_hung", "no progress"), 504),
        (ServerError("queue_full", "Exceeds maximum queue size", retry_after_s=3), 503),
        (ServerError("deadline_exceeded", "Request timeout expired"), 504),
        (ModelError("inference_failed", "division by zero"), 500),
        (ServerError("draining", "the server is stopping"), 503),
    ],
)
def test_what_becomes_of_a_request_becomes_its_status(error: Any, status: int) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.refusal = error
        async with session.post(INFER, json={"inputs": [X]}) as response:
            told = await said(response)
            assert (response.status, told["code"], told["retryable"]) == (status, error.code, error.retryable)
            assert ("Retry-After" in response.headers) == (status == 503)

    meet(test)


def test_a_bug_of_ours_is_a_500_that_tells_nothing_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        raise ZeroDivisionError("secret")

    backend = house()
    backend.serve("broken", metadata(("X", "FP32", (-1,))), broken)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post("/v2/models/broken/infer", json={"inputs": [X]}) as response:
            assert response.status == 500
            assert "secret" not in await response.text()
        async with session.post(INFER, json={"inputs": [X]}) as response:
            assert response.status == 200

    meet(test, backend)
    assert "secret" in caplog.text


def test_a_worker_that_forgets_an_output_is_a_502() -> None:
    backend = house()
    backend.serve("liar", metadata(("X", "FP32", (-1,))), lambda inputs: {})

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post("/v2/models/liar/infer", json={"inputs": [X]}) as response:
            assert (response.status, (await said(response))["code"]) == (502, "bad_worker_reply")

    meet(test, backend)


def test_each_request_is_counted_once_and_shown_on_the_metrics_page() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        for inputs in ([X], [X], []):
            async with session.post(INFER, json={"inputs": inputs}) as response:
                await response.read()
        backend.refusal = WorkerError("worker_crashed", "x")
        async with session.post(INFER, json={"inputs": [X]}) as response:
            await response.read()
        async with session.get("/metrics") as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'nv_inference_request_success{model="m",version="1"} 2.0' in text
        assert 'mmsup_requests_refused_total{code="bad_request",model="m"} 1.0' in text
        assert 'nv_inference_request_failure{model="m",reason="BACKEND",version=""} 1.0' in text
        async with session.get("/v2/models/m/stats") as response:
            (row,) = (await said(response))["model_stats"]
            assert row["inference_stats"]["success"]["count"] == 2

    meet(test)


def test_metrics_are_there_while_the_brain_is_not() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["status"] = ServerError("unavailable", "x")
        async with session.get("/metrics") as response:
            assert response.status == 200

    meet(test)


# Clients that misbehave, or leave.


def test_a_client_that_leaves_ends_its_request() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        entered, left = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.set()

        backend.before_infer = wait  # type: ignore[method-assign] # the hook that the double is made for
        body = json.dumps({"inputs": [X]}).encode()
        async with raw(session) as (_, writer):
            writer.write(
                b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body)) + body
            )
            await asyncio.wait_for(entered.wait(), 10)
        await asyncio.wait_for(left.wait(), 10)
        async with session.get("/metrics") as response:
            text = await response.text()
        assert 'nv_inference_request_failure{model="m",reason="CANCELED",version="1"} 1.0' in text

    meet(test)


def test_a_client_that_waits_to_be_asked_is_asked_only_if_its_head_is_good() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        body = json.dumps({"inputs": [X]}).encode()
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        async with raw(session) as (reader, writer):
            writer.write(head % (INFER.encode(), len(body)))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        async with raw(session) as (reader, writer):
            writer.write(head % (b"/v2/models/zz/infer", len(body)))
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")

    meet(test)


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400_in_json_and_a_closed_connection(head: bytes) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (reader, writer):
            writer.write(head)
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.split(b" ")[1] == b"400"
            assert json.loads(told.split(b"\r\n\r\n", 1)[1])["code"] == "bad_request"

    meet(test)


def test_a_head_that_drips_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_connection, "HEAD_S", 0.05)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (reader, writer):
            writer.write(b"GET /v2 HTTP/1.1\r\nHost:")
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.startswith(b"HTTP/1.1 408")
            assert json.loads(told.split(b"\r\n\r\n", 1)[1])["code"] == "body_timeout"

    meet(test)


def test_a_connection_that_waits_between_requests_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp_connection, "HEAD_S", 0.02)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async def wait() -> None:
            """Three times as long as a head may take."""
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.06)

        backend.before_infer = wait  # type: ignore[method-assign] # the hook that the double is made for
        async with raw(session) as (reader, writer):
            body = json.dumps({"inputs": [X]}).encode()
            head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
            for _again in range(2):
                writer.write(head + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                told = await reader.readuntil(b"\r\n\r\n")
                length = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)

    meet(test)


def test_a_body_that_stops_coming_is_answered_408_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "IDLE_S", 0.05)
    monkeypatch.setattr(aiohttp_connection, "LINGER_S", 0.05)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (reader, writer):
            writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc" % INFER.encode())
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.startswith(b"HTTP/1.1 408")
            assert b"Connection: close" in told
        assert backend.unclosed_requests == 0

    meet(test)


def test_a_client_that_does_not_read_its_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "WRITE_TIMEOUT_S", 0.1)

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        data = bytes(32 << 20)
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        base = session._base_url
        assert base is not None
        reader, writer = await asyncio.open_connection(base.host, base.port, limit=1 << 16)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{HEADER}: {headers[HEADER]}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

        await asyncio.wait_for(backend.left.wait(), 20)
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read(-1)) < len(body)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    meet(test)


def test_a_reply_read_in_small_sips_is_whole_though_its_memory_is_used_again_at_once() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        data = np.random.default_rng(1).integers(0, 256, 8 << 20, np.uint8).tobytes()
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{HEADER}: {headers[HEADER]}\r\n\r\n"
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

    meet(test)


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limit, "CONNECTION_LIMIT", 1)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (mine, writer):
            half = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{"
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + half.encode())
            assert (await mine.readuntil(b"live")).startswith(b"HTTP/1.1 200")
            async with raw(session) as (reader, _writer):
                assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 503")
            writer.write(b"}")
            assert b"HTTP/1.1 400" in await mine.readuntil(b"HTTP/1.1 400")

    meet(test)


def test_a_connection_that_does_nothing_gives_way_to_one_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limit, "CONNECTION_LIMIT", 1)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (idle, _idle), session.get("/livez") as response:
            assert response.status == 200
            assert await asyncio.wait_for(idle.read(), 10) == b""

    meet(test)


def test_requests_in_a_pipeline_are_answered_in_their_order() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with raw(session) as (reader, writer):
            one = b"GET /v2/models HTTP/1.1\r\nHost: x\r\n\r\n"
            last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            writer.write(one * 50 + last)
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.count(b'{"models":["m"]}') == 50
            assert told.endswith(b'{"live":true}')

    meet(test)


def test_aiohttp_is_the_one_whose_insides_we_know() -> None:
    assert aiohttp.__version__.startswith("3.14.")
