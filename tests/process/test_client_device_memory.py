"""Memory of a GPU that clients share with a whole server of two gateways, whose NVML and CUDA driver are played."""

from __future__ import annotations

import base64
import inspect
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

from harness import played_cuda
from harness.bystander import Bystander
from harness.nvml import Card, FakeNvml
from harness.played_cuda import handle_of
from harness.rpc_calls import connected
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
UUIDS = "6a2f0c1e-0000-0000-0000-000000000001", "91b07d33-0000-0000-0000-000000000002"
COUNT = 1 << 16
"""Elements: 256 KiB, more than a message holds."""
BYTES = 4 * COUNT
MODEL = """

CUDA = PlayedCuda({folder!r}, {uuid!r})
real = ctypes.CDLL
ctypes.CDLL = lambda path=None, *more, **named: CUDA if path == "libcuda.so.1" else real(path, *more, **named)


class Model:
    def infer(self, inputs):
        import numpy as np
        counts = [CUDA.calls[each] for each in ("cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle")]
        return {{"y": inputs["x"] * np.float32(2), "counts": np.array([[*counts, len(CUDA.opened)]], np.int32)}}
"""
TENSORS = """max_batch_size: 8
inputs: [{name: x, datatype: FP32, shape: [-1]}]
outputs: [{name: y, datatype: FP32, shape: [-1]}, {name: counts, datatype: INT32, shape: [3]}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    nvml = FakeNvml(tmp_path_factory.mktemp("nvml"), *[Card(f"GPU-{each}") for each in UUIDS])
    repository = bystander_repository(tmp_path_factory.mktemp("models"))
    for number, (name, uuid) in enumerate(zip(("near", "far"), UUIDS, strict=True)):
        (repository / name / "1").mkdir(parents=True)
        code = inspect.getsource(played_cuda) + MODEL.format(folder=str(folder), uuid=uuid)
        (repository / name / "1" / "model.py").write_text(code)
        (repository / name / "mmsup.yaml").write_text(f"{TENSORS}device: cuda:{number}\n")
    with serving(repository, "--gateways", "2", "--spare-gateway=false", env=nvml.env) as running:
        yield running


def memory(folder: Path, name: str, *values: float) -> bytes:
    """A client's memory; its handle as tritonclient wants it."""
    (folder / name).write_bytes(np.array(values, np.float32).tobytes().ljust(3 * BYTES, b"\0"))
    return base64.b64encode(handle_of(name))


def http_client(server: Server) -> httpclient.InferenceServerClient:
    host, port = server.address()
    return httpclient.InferenceServerClient(f"{host}:{port}", network_timeout=30)


def counts(client: Any, module: Any = httpclient) -> list[int]:
    """Handles that the worker has opened, closed, and has open."""
    x = module.InferInput("x", [1, 1], "FP32")
    x.set_data_from_numpy(np.zeros((1, 1), np.float32))
    return [int(each) for each in client.infer("near", [x]).as_numpy("counts")[0]]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tensors_go_both_ways_through_memory_of_a_gpu(server: Server, folder: Path, protocol: str) -> None:
    module: Any = httpclient if protocol == "http" else grpcclient
    given = np.arange(COUNT, dtype=np.float32)
    with http_client(server) if protocol == "http" else connected(server) as client:
        opened, closed, held = counts(client, module)
        assert held == 0
        client.register_cuda_shared_memory("r", memory(folder, protocol, *given), 0, 3 * BYTES)
        status = client.get_cuda_shared_memory_status("r")
        if protocol == "http":
            assert status == [{"name": "r", "device_id": 0, "byte_size": 3 * BYTES}]
        else:
            assert (status.regions["r"].device_id, status.regions["r"].byte_size) == (0, 3 * BYTES)
        x = module.InferInput("x", [1, COUNT], "FP32")
        x.set_shared_memory("r", BYTES)
        y = module.InferRequestedOutput("y")
        y.set_shared_memory("r", BYTES, offset=BYTES)
        for _ in range(3):
            client.infer("near", [x], outputs=[y])
        found = np.frombuffer((folder / protocol).read_bytes(), np.float32)
        np.testing.assert_array_equal(found[COUNT : 2 * COUNT], given * 2)
        assert not found[2 * COUNT :].any()
        assert counts(client, module) == [opened + 1, closed, 1]
        with pytest.raises(Exception, match="but the model runs on GPU-91b07d33"):
            client.infer("far", [x])
        z = module.InferInput("x", [COUNT], "FP32")
        z.set_shared_memory("r", BYTES)
        with pytest.raises(Exception, match="but the model runs on the CPU"):
            client.infer(BYSTANDER, [z])
        client.unregister_cuda_shared_memory("r")
        eventually(lambda: counts(client, module) == [opened + 1, closed + 1, 0], "the handle is closed")
        with pytest.raises(Exception, match="Unable to find shared memory region: 'r'"):
            client.infer("near", [x])


def test_a_client_s_mistakes_are_told_and_cost_nobody_anything(server: Server, folder: Path) -> None:
    handle, pids = memory(folder, "mistakes", 1, 2), server.pids("near")
    with http_client(server) as client, Bystander(server, BYSTANDER):
        for device, size, says in (
            (2, 64, "device 2, which is not here; there is 0 "),
            (0, 1 << 45, "device 0 has "),
            (-1, 64, "got device_id -1"),
            (0, 0, "byte_size above 0"),
        ):
            with pytest.raises(Exception, match=says):
                client.register_cuda_shared_memory("bad", handle, device, size)
        with pytest.raises(Exception, match="64 bytes in base64"):
            client.register_cuda_shared_memory("bad", base64.b64encode(b"short"), 0, 64)
        client.register_cuda_shared_memory("gone", base64.b64encode(handle_of("none")), 0, 64)
        client.register_cuda_shared_memory("large", handle, 0, 1 << 30)
        with pytest.raises(Exception, match="shared memory region 'gone' already in manager"):
            client.register_cuda_shared_memory("gone", handle, 0, 64)
        for name, offset, says in (
            ("gone", 0, "its handle is not valid, or its owner is gone"),
            ("gone", 60, "is at bytes 60 to 68 of shared memory region 'gone', which has 64 bytes"),
            ("large", 1 << 29, "whose memory has "),
        ):
            x = httpclient.InferInput("x", [1, 2], "FP32")
            x.set_shared_memory(name, 8, offset)
            with pytest.raises(Exception, match=says) as caught:
                client.infer("near", [x])
            assert "400" in str(caught.value)
        client.unregister_cuda_shared_memory()
        assert client.get_cuda_shared_memory_status() == []
    assert server.pids("near") == pids


def test_a_worker_that_comes_back_opens_the_memory_anew(server: Server, folder: Path) -> None:
    with http_client(server) as client:
        client.register_cuda_shared_memory("back", memory(folder, "back", 1, 2), 0, 3 * BYTES)
        x, y = httpclient.InferInput("x", [1, 2], "FP32"), httpclient.InferRequestedOutput("y")
        x.set_shared_memory("back", 8)
        y.set_shared_memory("back", 8, offset=16)
        client.infer("near", [x], outputs=[y])
        pid = server.pid("near")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: server.pids("near") not in ([], [pid]), "another worker is there")
        memory(folder, "back", 3, 4)
        client.infer("near", [x], outputs=[y])
        assert np.frombuffer((folder / "back").read_bytes(), np.float32)[4:6].tolist() == [6, 8]
        assert counts(client) == [1, 0, 1]
        client.unregister_cuda_shared_memory()
