"""Inference over HTTP: JSON, binary and raw requests, deadlines, parameters, the status of each error."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter, metadata
from http_api import (
    INFER,
    X,
    bare_connection,
    binary_body,
    blobs_of,
    json_of,
    make_router,
    run_with_session,
)
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.ipc.errors import ModelError, ServerError, WorkerError
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, as_bytes

pytestmark = pytest.mark.usefixtures("loop_factory")


def test_an_inference_in_json() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, json={"id": "a", "inputs": [X]}, headers={"X-Request-Id": "h1"}) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (200, "h1")
            assert await json_of(response) == {
                "model_name": "m",
                "model_version": "1",
                "id": "a",
                "outputs": [{"name": "X_out", "datatype": "FP32", "shape": [2], "data": [1.0, 2.5]}],
            }

    run_with_session(test)


@pytest.mark.parametrize("datatype", list(NUMPY))
def test_every_datatype_makes_the_round_trip_in_binary(datatype: str) -> None:
    if datatype == "BYTES":
        data = pack_strings([b"\xff\0", b"", b"text"])
    else:
        data = bytes(as_bytes(np.array([0, 1, 2]).astype(NUMPY[datatype])))
    backend = make_router()
    backend.serve("t", metadata(("A", datatype, (-1,)), ("B", datatype, (3,))))

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("A", datatype, [3], data), ("B", datatype, [3], data)])
        async with session.post("/v2/models/t/infer", data=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert await blobs_of(response) == {"A_out": data, "B_out": data}

    run_with_session(test, backend)


def test_fp16_keeps_its_bits() -> None:
    data = np.array([1.5, -2, np.nan], ml_dtypes.bfloat16).tobytes()
    backend = make_router()
    backend.serve("t", metadata(("A", "BF16", (-1,))))

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("A", "BF16", [3], data)])
        async with session.post("/v2/models/t/infer", data=body, headers=headers) as response:
            assert await blobs_of(response) == {"A_out": data}

    run_with_session(test, backend)


def test_a_raw_request_is_answered_in_binary() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        data = struct.pack("<3f", 1, 2, 3)
        async with session.post(INFER, data=data, headers={HEADER: "0"}) as response:
            assert await blobs_of(response) == {"X_out": data}

    run_with_session(test)


def test_a_large_tensor_round_trips_although_its_memory_is_reused_at_once() -> None:
    data = np.random.default_rng(0).integers(0, 256, 12_600_000, np.uint8).tobytes()

    async def test(_: FakeRouter, session: ClientSession) -> None:
        body, headers = binary_body([("X", "FP32", [len(data) // 4], data)])
        for _again in range(3):
            async with session.post(INFER, data=io.BytesIO(body), headers=headers) as response:
                assert (await blobs_of(response))["X_out"] == data

    run_with_session(test)


def test_a_timeout_in_the_request_shortens_the_deadline_and_never_extends_it() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        for timeout in (5_000_000, 2**62):
            async with session.post(INFER, json={"inputs": [X], "parameters": {"timeout": timeout}}) as response:
                assert response.status == 200
        short, long = [each.deadline_ns for each in backend.calls]
        assert short < long == 1 << 62

    run_with_session(test)


def test_parameters_reach_the_model_without_the_reserved_ones() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        body = {"inputs": [X], "parameters": {"timeout": 0, "priority": 2, "beam": 4, "binary_data_output": False}}
        async with session.post(INFER, json=body) as response:
            assert response.status == 200
        assert backend.calls[0].parameters == {"beam": 4}

    run_with_session(test)


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
def test_each_error_of_a_request_has_its_status(error: Any, status: int) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.refusal = error
        async with session.post(INFER, json={"inputs": [X]}) as response:
            told = await json_of(response)
            assert (response.status, told["code"], told["retryable"]) == (status, error.code, error.retryable)
            assert ("Retry-After" in response.headers) == (status == 503)

    run_with_session(test)


def test_a_reply_that_lacks_an_output_is_a_502() -> None:
    backend = make_router()
    backend.serve("liar", metadata(("X", "FP32", (-1,))), lambda inputs: {})

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post("/v2/models/liar/infer", json={"inputs": [X]}) as response:
            assert (response.status, (await json_of(response))["code"]) == (502, "bad_worker_reply")

    run_with_session(test, backend)


def test_an_error_has_the_request_id_of_the_json() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(INFER, json={"id": "j1", "inputs": []}, headers={"X-Request-Id": "h1"}) as response:
            assert (await json_of(response))["request_id"] == "j1"
            assert response.headers["X-Request-Id"] == "h1"
        async with session.post(INFER, data=b"{", headers={"X-Request-Id": "h1"}) as response:
            assert (await json_of(response))["request_id"] == "h1"

    run_with_session(test)


def test_the_request_of_a_client_that_leaves_is_ended() -> None:
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
        async with bare_connection(session) as (_, writer):
            writer.write(
                b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
                + body
            )
            await asyncio.wait_for(entered.wait(), 10)
        await asyncio.wait_for(left.wait(), 10)
        async with session.get("/metrics") as response:
            text = await response.text()
        assert 'nv_inference_request_failure{model="m",reason="CANCELED",version="1"} 1.0' in text

    run_with_session(test)
