"""Faults of models on a real GPU beside a bystander on the same device; nothing is simulated.

What NVML and CUDA are made to say where there is no GPU is in test_gpu_machine.py and test_gpu_faults.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.nvml import helpers_of
from harness.server import Json, Server, eventually, serving
from harness.victim import BYSTANDER, Victim, X
from mmsup.ipc.specs import TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.gpu]
HANG_LIMIT_S = 1.0
GIB = 1 << 30
MODEL = """
import os
import signal

import torch

WILD = 'extern "C" __global__ void wild(float* p) { p[1LL << 46] = 1.0f; }'


class Model:
    def load(self, context):
        self.device = context.device
        held = int(context.parameters.get("held_bytes", "0"))
        self.held = torch.ones(held, dtype=torch.uint8, device=self.device)
        self.infer({"x": torch.zeros(4).numpy(), "mode": [b"ok"]})

    def infer(self, inputs):
        x = torch.from_numpy(inputs["x"]).to(self.device)
        if "mode" in inputs:
            getattr(self, inputs["mode"][0].decode())(x)
        return {"y": (x * 1.0).cpu().numpy()}

    def ok(self, x):
        pass

    def wild(self, x):
        torch.cuda._compile_kernel(WILD, "wild")((1, 1, 1), (1, 1, 1), [x])

    def bounds(self, x):
        x[torch.tensor([1 << 20], device=self.device)] += 1.0

    def large(self, x):
        torch.empty(8 << 30, dtype=torch.uint8, device=self.device)

    def endless(self, x):
        torch.cuda._sleep(1 << 62)
        torch.cuda.synchronize()

    def segv(self, x):
        torch.cuda._sleep(1 << 32)
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def write_model(repository: Path, name: str, **settings: object) -> None:
    """An identity model on the GPU that fails as `mode` says."""
    inputs = TensorSpec("x", "FP32", (-1,)), TensorSpec("mode", "BYTES", (1,), optional=True)
    more = {"device": "cuda:0", "hang_limit": f"{HANG_LIMIT_S:g}s", **settings}
    write_python(repository, name, MODEL, inputs, (TensorSpec("y", "FP32", (-1,)),), settings=more)


@pytest.fixture(scope="module")
def cuda() -> None:
    """Skips without a GPU. Another process checks, since this one must not hold a CUDA context."""
    asked = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], stdout=-1, check=True
    )
    if asked.stdout.strip() != b"True":
        pytest.skip("torch finds no CUDA device here")


@pytest.fixture(scope="module")
def server(cuda: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a bystander on the GPU."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, BYSTANDER, hang_limit="30s")
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


class CudaVictim(Victim):
    """Has no `amount`."""

    def call(self, mode: str = "ok", amount: float = 0.0, x: Sequence[float] = X, **parameters: int) -> Json:
        """The body of a call."""
        given = super().call(mode, amount, x, **parameters)
        given["inputs"] = [each for each in given["inputs"] if each["name"] != "amount"]
        return given


@contextlib.contextmanager
def victim(server: Server, name: str, **settings: object) -> Iterator[CudaVictim]:
    """A model on the GPU of the bystander; it must serve at the end and leave nothing."""
    before = settled(server)
    write_model(server.repository, name, **settings)
    server.ctl("load", name=name)
    made = CudaVictim(server, name)
    made.assert_serves()
    with Bystander(server, BYSTANDER) as bystander:
        yield made
        server.await_state(name, "ready")
        made.assert_serves()
    print(f"{name}: {bystander.sent} calls beside it, the worst took {bystander.worst_s * 1e3:.0f} ms")
    server.ctl("unload", name=name)
    assert_clean(before, server)


def device(server: Server) -> Json:
    """The first row of `ctl devices list`."""
    row = server.ctl("devices")["devices"][0]
    assert isinstance(row, dict)
    return row


@pytest.mark.fault("F18")
def test_what_is_asked_for_beyond_the_share_of_a_model_is_refused_to_that_request_alone(server: Server) -> None:
    with victim(server, "greedy", gpu_memory="4GiB") as greedy:
        pid = server.pid("greedy")
        for _ in range(2):
            status, reply = greedy.send("large")
            assert (status, reply["code"]) == (503, "gpu_oom"), reply
            greedy.assert_serves()
        assert server.pid("greedy") == pid


@pytest.mark.fault("F19")
@pytest.mark.parametrize("mode", ["wild", "bounds"])
def test_a_kernel_that_loses_the_context_costs_its_own_worker(server: Server, mode: str) -> None:
    with victim(server, mode) as lost:
        pid = server.pid(mode)
        status, reply = lost.send(mode)
        assert (status, reply["code"]) == (503, "gpu_fault"), reply
        assert lost.death()["cause"] == "gpu fault"
        server.await_state(mode, "ready")
        assert server.pid(mode) != pid
    server.ctl("devices_release", device="cuda")


@pytest.mark.fault("F10")
def test_a_kernel_without_an_end_is_killed_with_its_worker(server: Server) -> None:
    # The host thread spins while it waits for the device, which is progress: the run ends at its deadline.
    with victim(server, "endless", deadline=f"{HANG_LIMIT_S:g}s") as endless:
        status, reply = endless.send("endless")
        assert status == 504, reply
        assert reply["code"] in ("worker_hung", "deadline_exceeded"), reply
        assert endless.death()["cause"] == "hung"


@pytest.mark.fault("F3")
def test_a_worker_that_crashes_while_its_kernel_runs_is_replaced(server: Server) -> None:
    with victim(server, "crashes", retry_on_crash=False) as crashes:
        status, reply = crashes.send("segv")
        assert (status, reply["code"]) == (503, "worker_crashed"), reply
        assert crashes.death()["cause"] == "signal SIGSEGV"


@pytest.mark.fault("F20")
def test_most_of_a_gpu_is_there_again_for_the_next_worker(server: Server) -> None:
    total = eventually(lambda: device(server)["memory_total_bytes"], "NVML says what there is")
    held = total // 5 * 3 // GIB * GIB
    with victim(server, "vast", parameters={"held_bytes": str(held)}) as vast:
        eventually(lambda: device(server)["memory_used_bytes"] > held, "NVML shows what it holds")
        for number in (1, 2):
            os.kill(server.pid("vast"), signal.SIGKILL)
            vast.death(number)
            server.await_event("worker_ready", "vast", number + 1)
            vast.assert_serves()
        assert not server.events("load_failed", "vast")
    eventually(lambda: device(server)["memory_used_bytes"] < held, "it is free again")


def test_nvml_names_the_workers_as_we_do(server: Server) -> None:
    with victim(server, "seen"):
        ours = {server.pid("seen"), server.pid(BYSTANDER)}
        text = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE, text=True, check=True,
        ).stdout  # fmt: skip
        print(text)
        assert ours <= {int(line.split(",")[0]) for line in text.splitlines()}
        assert device(server)["workers"] == 2


@pytest.mark.fault("F21")
def test_a_helper_of_nvml_that_stands_still_is_replaced(server: Server) -> None:
    eventually(lambda: device(server)["memory_total_bytes"], "NVML says what there is")
    with Bystander(server, BYSTANDER):
        (helper,) = helpers_of(server.status()["brain"]["pid"])
        os.kill(helper, signal.SIGSTOP)
        server.await_event("gpu_silent")
        server.await_event("gpu_back")
        (successor,) = helpers_of(server.status()["brain"]["pid"])
        assert successor != helper
        assert not device(server)["stale"]
