"""Memory that clients share with a whole server of two gateways: tritonclient over HTTP and gRPC."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import shared_memory

from engines.build import write_identity_onnx
from faults.test_upgrade import upgrade
from harness.bystander import Bystander
from harness.client_region import ClientRegion, client_region
from harness.invariants import server_processes
from harness.rpc_calls import connected
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
COUNT = 1 << 18
"""Elements: 1 MiB, more than a message holds."""
BYTES = 4 * COUNT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("models"))
    write_identity_onnx(repository, "text", "BYTES", dims=[-1])
    with serving(repository, "--gateways", "2", "--spare-gateway=false") as running:
        yield running


@contextlib.contextmanager
def http_client(server: Server) -> Iterator[httpclient.InferenceServerClient]:
    host, port = server.address()
    with httpclient.InferenceServerClient(f"{host}:{port}", network_timeout=30) as made:
        yield made


def values(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(COUNT, dtype=np.float32)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tensors_go_both_ways_through_memory_of_a_client(server: Server, protocol: str) -> None:
    """As the public examples do it: create, register, infer, read, unregister, destroy."""
    module: Any = httpclient if protocol == "http" else grpcclient
    given, taken = values(1), f"{protocol}_out"
    source = shared_memory.create_shared_memory_region("in", f"mmsup_client_{protocol}_in_{os.getpid()}", BYTES)
    target = shared_memory.create_shared_memory_region("out", f"mmsup_client_{protocol}_out_{os.getpid()}", BYTES)
    try:
        with http_client(server) if protocol == "http" else connected(server) as client:
            metadata = client.get_server_metadata()
            extensions = metadata["extensions"] if protocol == "http" else metadata.extensions
            assert {"system_shared_memory", "cuda_shared_memory"} <= set(extensions)
            client.unregister_system_shared_memory()
            client.unregister_cuda_shared_memory()
            shared_memory.set_shared_memory_region(source, [given])
            client.register_system_shared_memory("in", f"mmsup_client_{protocol}_in_{os.getpid()}", BYTES)
            client.register_system_shared_memory(taken, f"/mmsup_client_{protocol}_out_{os.getpid()}", BYTES)
            x = module.InferInput("x", [COUNT], "FP32")
            x.set_shared_memory("in", BYTES)
            y = module.InferRequestedOutput("y")
            y.set_shared_memory(taken, BYTES)
            result = client.infer(BYSTANDER, [x], outputs=[y], request_id="r")
            shown = result.get_output("y")
            shape = shown["shape"] if protocol == "http" else list(shown.shape)
            assert shape == [COUNT]
            found = shared_memory.get_contents_as_numpy(target, np.float32, [COUNT])
            np.testing.assert_array_equal(found, given)
            for _ in range(2):  # in from memory, out in the reply: the memory is read anew each time
                given = given + 1
                shared_memory.set_shared_memory_region(source, [given])
                np.testing.assert_array_equal(client.infer(BYSTANDER, [x]).as_numpy("y"), given)
            status = client.get_system_shared_memory_status()
            names = {each["name"] for each in status} if protocol == "http" else set(status.regions)
            assert names == {"in", taken}
            client.unregister_system_shared_memory(taken)
            client.unregister_system_shared_memory()
            with pytest.raises(Exception, match="Unable to find shared memory region: 'in'"):
                client.infer(BYSTANDER, [x])
    finally:
        shared_memory.destroy_shared_memory_region(source)
        shared_memory.destroy_shared_memory_region(target)


def register(client: Any, name: str, key: str, size: int, offset: int = 0) -> None:
    client.register_system_shared_memory(name, key, size, offset)


def shared_input(name: str, count: int, offset: int = 0) -> Any:
    x = httpclient.InferInput("x", [count], "FP32")
    x.set_shared_memory(name, 4 * count, offset)
    return x


def test_every_gateway_serves_a_region_that_one_of_them_registered(server: Server) -> None:
    """Many connections, which the kernel spreads over the two gateways."""
    with client_region(64) as memory, contextlib.ExitStack() as stack:
        memory.put(np.arange(16, dtype=np.float32))
        clients = [stack.enter_context(http_client(server)) for _ in range(12)]
        for each in clients:
            assert each.is_server_live()
        register(clients[0], "everywhere", memory.key, 64)
        for each in clients:
            assert each.infer(BYSTANDER, [shared_input("everywhere", 4, 16)]).as_numpy("y").tolist() == [4, 5, 6, 7]
        clients[5].unregister_system_shared_memory("everywhere")
        for each in clients:
            with pytest.raises(httpclient.InferenceServerException, match="Unable to find"):
                each.infer(BYSTANDER, [shared_input("everywhere", 4)])


def test_strings_are_checked_as_they_are_copied(server: Server) -> None:
    packed = b"".join(len(each).to_bytes(4, "little") + each for each in (b"one", b"", b"three"))
    with client_region(256) as memory, http_client(server) as client:
        os.pwrite(memory.fd, packed, 0)
        register(client, "text", memory.key, 256)
        x = httpclient.InferInput("x", [3], "BYTES")
        x.set_shared_memory("text", len(packed))
        y = httpclient.InferRequestedOutput("y")
        y.set_shared_memory("text", 100, 128)
        client.infer("text", [x], outputs=[y])
        assert os.pread(memory.fd, len(packed), 128) == packed
        os.pwrite(memory.fd, b"\xff\xff", 0)
        with pytest.raises(httpclient.InferenceServerException, match="element 0 claims 65535 bytes") as caught:
            client.infer("text", [x], outputs=[y])
        assert caught.value.status() == "400"
        client.unregister_system_shared_memory("text")


def open_regions(server: Server) -> int:
    """Descriptors of files in /dev/shm in all processes of the server."""
    found = [name for each in server_processes(server).processes for name in open_files(each.pid)]
    return sum(each.startswith("/dev/shm/") for each in found)


def open_files(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return []


@pytest.mark.fault("F44")
def test_a_region_that_is_truncated_harms_its_own_requests_alone(server: Server) -> None:
    pids = {each: server.pid(each) for each in (BYSTANDER, "text")}
    with Bystander(server, BYSTANDER), client_region(2 * BYTES) as memory, http_client(server) as client:
        memory.put(values(2))
        register(client, "victim", memory.key, 2 * BYTES)
        y = httpclient.InferRequestedOutput("y")
        y.set_shared_memory("victim", BYTES, BYTES)
        client.infer(BYSTANDER, [shared_input("victim", COUNT)], outputs=[y])
        memory.truncate(BYTES)  # the output is gone
        with pytest.raises(httpclient.InferenceServerException, match="'victim', of which only 0 are there") as caught:
            client.infer(BYSTANDER, [shared_input("victim", COUNT)], outputs=[y])
        assert caught.value.status() == "400"
        assert memory.size == BYTES, "the server made the file longer"
        memory.truncate(100)  # and the input is
        for _ in range(3):
            with pytest.raises(httpclient.InferenceServerException, match="of which only 100 are there"):
                client.infer(BYSTANDER, [shared_input("victim", COUNT)])
        memory.remove()  # its name goes, and the server holds the file
        assert client.infer(BYSTANDER, [shared_input("victim", 25)]).as_numpy("y").size == 25
        client.unregister_system_shared_memory("victim")
    assert {each: server.pid(each) for each in pids} == pids
    assert open_regions(server) == 0
    eventually(lambda: not server.gauge("mmsup_arena_used_bytes") + server.gauge("mmsup_requests_open"), "all is freed")


def gateway_pids(server: Server) -> list[int]:
    return [each["pid"] for each in server.status()["gateways"]]


@pytest.mark.fault("F44")
def test_regions_outlive_a_gateway_a_controller_and_an_upgrade(server: Server) -> None:
    with client_region(64) as memory:
        memory.put(np.arange(16, dtype=np.float32))

        def is_served() -> bool:
            with http_client(server) as client:
                found = client.infer(BYSTANDER, [shared_input("lasting", 2, 8)]).as_numpy("y")
                return bool((found == [2, 3]).all())

        with http_client(server) as client:
            register(client, "lasting", memory.key, 64)
        memory.remove()
        with Bystander(server, BYSTANDER, may_be_cut=True):
            for each in server.status()["gateways"]:
                old = each["pid"]
                os.kill(old, signal.SIGKILL)
                eventually(lambda old=old: old not in (now := gateway_pids(server)) and all(now), "another gateway")  # type: ignore[misc]
                assert all(is_served() for _ in range(8))
            os.kill(server.status()["controller"]["pid"], signal.SIGKILL)
            server.await_event("brain_exit")
            assert all(is_served() for _ in range(8))
        assert upgrade(server).returncode == 0
        assert all(is_served() for _ in range(8))
        with http_client(server) as client:
            assert [each["name"] for each in client.get_system_shared_memory_status()] == ["lasting"]
            client.unregister_system_shared_memory()
            assert client.get_system_shared_memory_status() == []


class Hostile(threading.Thread):
    """Registers, infers, truncates, lengthens, unregisters and removes regions at random, some of them of others."""

    def __init__(self, server: Server, seed: int, keys: list[ClientRegion]) -> None:
        super().__init__(name=f"hostile {seed}")
        self._server, self._keys = server, keys
        self._rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        with http_client(self._server) as client:
            for _ in range(120):
                number = self._rng.randrange(len(self._keys))
                act = self._rng.choice(
                    ["register", "infer", "infer", "infer", "into", "resize", "unregister", "status"]
                )
                try:
                    self.outcomes[getattr(self, f"_{act}")(client, number)] += 1
                except httpclient.InferenceServerException as error:
                    status, text = error.status(), str(error)
                    expected = ("Unable to find", "are there", "already in manager", "is not in its file", "of shared")
                    known = status in ("400", "404") and any(each in text for each in expected)
                    self.outcomes["refused" if known else f"{status} {text}"] += 1

    def _register(self, client: Any, number: int) -> str:
        register(client, f"r{number}", self._keys[number].key, BYTES)
        return "registered"

    def _infer(self, client: Any, number: int) -> str:
        y = client.infer(BYSTANDER, [shared_input(f"r{number}", COUNT)]).as_numpy("y")
        return "right" if set(np.unique(y).tolist()) <= {0.0, float(number + 1)} else "wrong"

    def _into(self, client: Any, number: int) -> str:
        x = httpclient.InferInput("x", [COUNT], "FP32")
        x.set_data_from_numpy(np.full(COUNT, number + 1, np.float32))
        y = httpclient.InferRequestedOutput("y")
        y.set_shared_memory(f"r{number}", BYTES)
        client.infer(BYSTANDER, [x], outputs=[y])
        return "written"

    def _resize(self, _: Any, number: int) -> str:
        self._keys[number].truncate(self._rng.choice([0, 100, BYTES // 2, BYTES, BYTES]))
        return "resized"

    def _unregister(self, client: Any, number: int) -> str:
        client.unregister_system_shared_memory(f"r{number}" if self._rng.random() < 0.8 else "")
        return "unregistered"

    def _status(self, client: Any, number: int) -> str:
        client.get_system_shared_memory_status(f"r{number}")
        return "shown"


@pytest.mark.fault("F80")
def test_clients_that_take_regions_from_under_each_other_s_requests_reach_nobody_else(server: Server) -> None:
    pids = gateway_pids(server), server.pid(BYSTANDER)
    with contextlib.ExitStack() as stack:
        keys = [stack.enter_context(client_region(BYTES)) for _ in range(3)]
        for number, each in enumerate(keys):
            each.put(np.full(COUNT, number + 1, np.float32))
        with Bystander(server, BYSTANDER):
            hostile = [Hostile(server, seed, keys) for seed in range(4)]
            for thread in hostile:
                thread.start()
            for thread in hostile:
                thread.join(120)
        with http_client(server) as client:
            client.unregister_system_shared_memory()
    outcomes = sum((each.outcomes for each in hostile), Counter[str]())
    usual = {"right", "written", "refused", "registered", "resized", "unregistered", "shown"}
    assert set(outcomes) <= usual, outcomes
    assert outcomes["right"] > 5 < outcomes["refused"], outcomes
    assert (gateway_pids(server), server.pid(BYSTANDER)) == pids
    assert open_regions(server) == 0
