"""Memory of clients over HTTP and gRPC, of one gateway: registration, inference, and what is refused."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter, metadata
from harness.client_region import client_region
from http_api import INFER, json_of, run_with_session
from mmsup.ipc.messages.data import DeviceRegion
from mmsup.ipc.messages.gateway_control import MemoryRegion
from mmsup.ipc.specs import ENSEMBLE
from mmsup.supervisor.gateways.client_regions import device_refusal

pytestmark = pytest.mark.usefixtures("loop_factory")
BASE = "/v2/systemsharedmemory/region/r"
X: dict[str, Any] = {
    "name": "X",
    "shape": [2],
    "datatype": "FP32",
    "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8},
}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "failed to parse"),
        (b"[]", "not an object"),
        (b"{}", "'key' must be a string"),
        (b'{"key": 1, "byte_size": 8}', "'key' must be a string"),
        (b'{"key": "k"}', "'byte_size' must be an integer"),
        (b'{"key": "k", "byte_size": true}', "'byte_size' must be an integer"),
        (b'{"key": "k", "byte_size": "8"}', "'byte_size' must be an integer"),
        (b'{"key": "k", "byte_size": 8, "offset": 1.5}', "'offset' must be an integer"),
        (b'{"key": "k", "byte_size": 8, "offset": 99999999999999999999999}', "'offset' must be an integer"),
        (b'{"key": "k", "byte_size": 8, "offset": -1}', "not negative"),
        (b'{"key": "../k", "byte_size": 8}', "the key of a shared memory region"),
        (b'{"key": "sem.k", "byte_size": 8}', "belongs to a library"),
        (b'{"key": "mmsup_client_none", "byte_size": 8}', "there is no shared memory with this key"),
    ],
)
def test_a_registration_that_cannot_be_is_refused_with_the_reason(body: bytes, says: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(f"{BASE}/register", data=body) as response:
            assert response.status == 400
            assert says in (await json_of(response))["error"]

    run_with_session(test)


@pytest.mark.parametrize(
    "handle", [{}, {"b64": 5}, {"b64": "%"}, {"b64": "ä"}, {"b64": base64.b64encode(bytes(63)).decode()}, None]
)
def test_a_handle_of_a_gpu_s_memory_has_64_bytes(handle: Any) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        document = {"raw_handle": handle, "device_id": 0, "byte_size": 8}
        async with session.post("/v2/cudasharedmemory/region/g/register", json=document) as response:
            assert response.status == 400
            assert "'raw_handle'" in (await json_of(response))["error"]

    run_with_session(test)


def test_without_a_gpu_its_memory_is_not_registered_and_everything_else_succeeds() -> None:
    async def test(router: FakeRouter, session: ClientSession) -> None:
        async def announce(region: MemoryRegion, _: int) -> None:
            error = device_refusal(region, None)
            assert error is not None
            raise error

        router.regions.announce = announce
        document = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 8}
        async with session.post("/v2/cudasharedmemory/region/g/register", json=document) as response:
            assert response.status == 501
        async with session.get("/v2/cudasharedmemory/status") as response:
            assert await response.json() == []
        async with session.post("/v2/cudasharedmemory/region/g/unregister") as response:
            assert (response.status, await response.read()) == (200, b"")

    run_with_session(test)


def test_a_tensor_in_memory_of_a_gpu_is_left_to_the_worker() -> None:
    """The gateway says where it is, and copies only what lies in files."""

    async def test(router: FakeRouter, session: ClientSession) -> None:
        handle = bytes(range(64))
        document = {"raw_handle": {"b64": base64.b64encode(handle).decode()}, "device_id": 1, "byte_size": 64}
        async with session.post("/v2/cudasharedmemory/region/g/register", json=document) as response:
            assert (response.status, await response.read()) == (200, b"")
        async with session.get("/v2/cudasharedmemory/region/g/status") as response:
            assert await response.json() == [{"name": "g", "device_id": 1, "byte_size": 64}]
        inside = {"shared_memory_region": "g", "shared_memory_offset": 16, "shared_memory_byte_size": 8}
        wanted = [{"name": "X_out", "parameters": inside | {"shared_memory_byte_size": 48}}]
        seen: list[tuple[DeviceRegion, ...]] = []

        def model(inputs: dict[str, Any]) -> dict[str, Any]:
            seen.append(router.calls[-1].regions)
            return {"X_out": ("FP32", (2,), bytes(8))}

        router.models["m"] = model
        async with session.post(INFER, json={"inputs": [X | {"parameters": inside}], "outputs": wanted}) as response:
            assert (await json_of(response))["outputs"] == [{"name": "X_out", "datatype": "FP32", "shape": [2]}]
        assert seen == [
            (DeviceRegion(0, "X", "g", 1, "", handle, 16, 8), DeviceRegion(-1, "X_out", "g", 1, "", handle, 16, 48))
        ]
        outside = [X | {"parameters": inside | {"shared_memory_offset": 57}}]
        async with session.post(INFER, json={"inputs": outside}) as response:
            assert response.status == 400
            assert (
                "bytes 57 to 65 of shared memory region 'g', which has 64 bytes" in (await json_of(response))["error"]
            )

    run_with_session(test)


@pytest.mark.parametrize(
    ("datatype", "engine", "status", "says"),
    [
        ("BYTES", "custom", 400, "input 'X' for model 't' is BYTES, which may not lie in memory of a GPU: send it"),
        ("FP32", ENSEMBLE, 501, "model 't' is an ensemble, for which no memory of a GPU is used"),
    ],
)
def test_what_no_worker_could_copy_is_refused(datatype: str, engine: str, status: int, says: str) -> None:
    async def test(router: FakeRouter, session: ClientSession) -> None:
        router.serve("t", metadata(("X", datatype, (2,))))
        spec, described = router.described["t"]
        router.described["t"] = replace(spec, engine=engine), described
        document = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 64}
        async with session.post("/v2/cudasharedmemory/region/r/register", json=document) as response:
            assert response.status == 200
        body = {"inputs": [X | {"datatype": datatype}]}
        async with session.post("/v2/models/t/infer", json=body) as response:
            assert (response.status, says in (await json_of(response))["error"]) == (status, True)
        assert router.calls == []

    run_with_session(test)


def test_a_listener_that_others_can_reach_shares_no_memory() -> None:
    """Neither by registration nor by naming what a client of this machine has registered."""

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post(f"{BASE}/register", json={"key": "k", "byte_size": 8}) as response:
            assert response.status == 501
            assert "--allow-client-shm=true" in (await json_of(response))["error"]
        async with session.post(INFER, json={"inputs": [X]}) as response:
            assert (response.status, (await json_of(response))["code"]) == (501, "not_implemented")
        for path in ("system", "cuda"):
            async with session.post(f"/v2/{path}sharedmemory/unregister") as response:
                assert response.status == 200

    run_with_session(test, host="0.0.0.0")


@pytest.mark.parametrize("front", ["fast", "plain"])
def test_tensors_are_read_anew_for_each_request(front: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        with client_region(64) as memory:
            async with session.post(INFER, json={"inputs": [X]}) as response:
                assert response.status == 400
                assert "Unable to find shared memory region: 'r'" in (await json_of(response))["error"]
            async with session.post(f"{BASE}/register", json={"key": memory.key, "byte_size": 64}) as response:
                assert (response.status, await response.read()) == (200, b"")
            async with session.get(f"{BASE}/status") as response:
                expected = {"name": "r", "key": memory.key, "offset": 0, "byte_size": 64}
                assert await response.json() == [expected]
            where = {"shared_memory_region": "r", "shared_memory_offset": 16, "shared_memory_byte_size": 8}
            y: dict[str, Any] = {"name": "X_out", "parameters": where}
            small: dict[str, Any] = {"name": "X_out", "parameters": where | {"shared_memory_byte_size": 7}}
            async with session.post(INFER, json={"inputs": [X], "outputs": [small]}) as response:
                assert response.status == 400
                text = "output 'X_out' of model 'm' has 8 bytes, but shared_memory_byte_size 7"
                assert (await json_of(response))["error"] == text
            for number in range(4):  # often enough to become a known request, which it must not
                memory.put(np.array([number, number + 0.5], dtype=np.float32))
                async with session.post(INFER, json={"inputs": [X]}) as response:
                    assert (await json_of(response))["outputs"][0]["data"] == [number, number + 0.5]
                async with session.post(INFER, json={"inputs": [X], "outputs": [y]}) as response:
                    (shown,) = (await json_of(response))["outputs"]
                assert shown == {"name": "X_out", "datatype": "FP32", "shape": [2]}
                assert memory.get(2, 16) == [number, number + 0.5]

    run_with_session(test, front=front)
