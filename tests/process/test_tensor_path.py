"""Tensors through the whole server: large ones byte for byte, and many clients that each get their own replies."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from engines.build import write_fault_model, write_identity_onnx, write_python
from harness.invariants import assert_clean, descriptor_kinds, settled, snapshot
from harness.server import Http, Server, eventually, serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
LARGE = (1024, 3, 32, 32)
"""12.6 MB of float32."""
CLIENTS = 64
MIX_S = (4.0, pytest.param(60.0, marks=pytest.mark.long))

REVERSE = """
class Model:
    def infer(self, inputs):
        return {"y": inputs["x"][::-1]}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_identity_onnx(repository, "large", dims=[-1, 3, 32, 32])
    write_identity_onnx(repository, "batching", dims=[-1], max_batch=8)
    tensor = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
    write_python(repository, "reverse", REVERSE, tensor[:1], tensor[1:])
    write_fault_model(repository, "echo")
    with serving(repository) as running:
        yield running
        assert running.stop() == 0


def binary_request(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": array.shape,
                    "parameters": {"binary_data_size": array.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return head + array.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def rss(server: Server) -> dict[str, int]:
    found = {
        "keeper": server.process.pid,
        "gateway": server.status()["gateways"][0]["pid"],
        "worker": server.pid("large"),
    }
    return {role: psutil.Process(pid).memory_info().rss for role, pid in found.items()}


def test_a_large_tensor_goes_in_and_out_a_hundred_times_unchanged_and_nothing_grows(server: Server) -> None:
    rng = np.random.default_rng(1)
    connection = Http(server.address())
    worker = server.pid("large")
    array, warm = rng.standard_normal(LARGE, dtype=np.float32), None
    for turn in range(110):
        array += 1  # other bytes each time, at a tenth of the cost of drawing them anew
        body, headers = binary_request("x", array)
        status, reply_headers, reply = connection.send("POST", "/v2/models/large/infer", body, headers)
        assert status == 200, reply[:500]
        head = int(reply_headers["Inference-Header-Content-Length"])
        assert reply[head:] == body[-array.nbytes :]
        (output,) = json.loads(reply[:head])["outputs"]
        assert output["shape"] == list(LARGE)
        if turn == 9:
            warm = settled(server), descriptor_kinds(worker), rss(server)
    assert warm is not None
    before, worker_fds, memory = warm
    assert_clean(before, server)  # the gateway's descriptors too
    assert descriptor_kinds(worker) - worker_fds == {}
    for role, was in memory.items():
        assert rss(server)[role] <= was + (8 << 20), f"{role} grew"
    connection.close()


class Caller(threading.Thread):
    """One client with its own numbers, checking each reply against its own request."""

    def __init__(self, server: Server, number: int, end: float) -> None:
        super().__init__(name=f"client {number}")
        self._address = server.address()
        self._number = number
        self._end = end
        self.answered = 0
        self.fault = ""

    def run(self) -> None:
        rng = random.Random(self._number)
        connection = Http(self._address)
        try:
            while time.monotonic() < self._end and not self.fault:
                self._call(connection, rng)
                self.answered += 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.fault = self.fault or repr(error)
        finally:
            connection.close()

    def _call(self, connection: Http, rng: random.Random) -> None:
        model = rng.choice(["batching", "reverse", "echo"])
        size = rng.choice([1, 16, 300, 3000, 40_000])
        array = np.arange(size, dtype=np.float32) + np.float32(self._number * 50_000 + rng.randrange(1000))
        shape = array.reshape(1, -1) if model == "batching" else array
        expected = array[::-1] if model == "reverse" else array
        if size <= 16 and rng.random() < 0.5:
            status, reply = connection.infer(model, x=("FP32", list(shape.shape), array.tolist()))
            good = status == 200 and reply["outputs"][0]["data"] == expected.tolist()
        else:
            body, headers = binary_request("x", shape)
            status, reply_headers, raw = connection.send("POST", f"/v2/models/{model}/infer", body, headers)
            reply = raw[:300]
            head = int(reply_headers.get("Inference-Header-Content-Length", 0))
            good = status == 200 and raw[head : head + array.nbytes] == expected.tobytes()
        if not good:
            self.fault = f"{model}, {size} floats: {status} {reply!r:.300}"


@pytest.mark.parametrize("mix_s", MIX_S)
def test_many_clients_on_three_models_each_get_their_own_answers(server: Server, mix_s: float) -> None:
    before = settled(server)
    end = time.monotonic() + mix_s
    callers = [Caller(server, number, end) for number in range(CLIENTS)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(mix_s + 60)
    faults = [each.fault for each in callers if each.fault]
    total = sum(each.answered for each in callers)
    print(f"{total} replies in {mix_s:.0f} s from {CLIENTS} clients, {len(faults)} wrong")
    assert not faults, faults[:3]
    assert min(each.answered for each in callers) > 0
    assert before.roles == snapshot(server).roles
    eventually(lambda: server.gauge("mmsup_requests_open") == 0, "no request is open")
    eventually(lambda: server.gauge("mmsup_arena_used_bytes") == 0, "no slot is in use")
    assert not server.events("worker_exit")
