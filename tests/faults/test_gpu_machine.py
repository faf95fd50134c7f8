"""GPUs that fail, do not release memory or do not report, in a real server with a simulated NVML and CUDA."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.bystander import Bystander
from harness.invariants import assert_gone, server_processes
from harness.nvml import GIB, Card, FakeNvml, helpers_of
from harness.server import Json, Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository
from mmsup.supervisor.cli.ctl.control_client import ServerRefused
from mmsup.supervisor.gpu.memory_release import WAIT_S

pytestmark = pytest.mark.slow
FIRST, SECOND = "GPU-aaaa1111", "GPU-bbbb2222"
MODEL = """
import time


class Model:
    def infer(self, inputs):
        if (inputs["x"] == 666.0).any():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if (inputs["x"] == 777.0).any():
            time.sleep(60)
        return {"y": inputs["x"]}
"""
TENSORS = "inputs: [{name: x, datatype: FP32, shape: [2]}]\noutputs: [{name: y, datatype: FP32, shape: [2]}]\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, FakeNvml]]:
    """A server on two GPUs, with a bystander on the CPU."""
    nvml = FakeNvml(tmp_path_factory.mktemp("nvml"), Card(FIRST), Card(SECOND))
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER)
    with serving(repository, *flags, env=nvml.env) as running:
        yield running, nvml
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@pytest.fixture
def server(machine: tuple[Server, FakeNvml]) -> Iterator[Server]:
    """The server; its devices are empty and healthy before and after a test."""
    running, nvml = machine
    with Bystander(running, BYSTANDER):
        yield running
    nvml.set_cards(Card(FIRST), Card(SECOND))
    for each in running.status()["models"]:
        if each["name"] != BYSTANDER:
            running.ctl("unload", name=each["name"])
    running.ctl("devices_release", device="cuda")
    eventually(lambda: not any(each["workers"] for each in running.ctl("devices")["devices"]), "nobody is left there")


@pytest.fixture
def nvml(machine: tuple[Server, FakeNvml]) -> FakeNvml:
    return machine[1]


def load(server: Server, name: str, device: str = "cuda:0", more: str = "") -> int:
    """A model that seems to compute on a GPU; the pid of its worker. `more`: of its mmsup.yaml."""
    folder = server.repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    (folder.parent / "mmsup.yaml").write_text(f"{TENSORS}device: {device}\n{more}\n")
    server.ctl("load", name=name)
    return server.pid(name)


def call(server: Server, name: str, *x: float) -> tuple[int, Json]:
    """Status and body of one request."""
    http = server.http()
    try:
        status, reply = http.infer(name, x=("FP32", [2], list(x)))
        assert isinstance(reply, dict)
        return status, reply
    finally:
        http.close()


def fault(server: Server, name: str, number: int) -> None:
    """Its nth GPU fault and the exit of its worker."""
    status, reply = call(server, name, 666.0, number)
    assert (status, reply["code"]) == (503, "gpu_fault"), reply
    assert server.await_event("worker_exit", name, number)["cause"] == "gpu fault"


def device(server: Server, uuid: str = FIRST) -> Any:  # a row of `ctl devices list`
    (found,) = [each for each in server.ctl("devices")["devices"] if each["uuid"] == uuid]
    return found


def gauges(server: Server, name: str, uuid: str = FIRST) -> list[float]:
    """The values of a metric of one GPU: one or none."""
    http = server.http("metrics")
    try:
        _, _, text = http.send("GET", "/metrics")
    finally:
        http.close()
    lines = text.decode().splitlines()
    return [float(each.split()[1]) for each in lines if each.startswith(f'{name}{{gpu_uuid="{uuid}"}}')]


@pytest.mark.fault("F19")
def test_a_device_that_several_models_met_faults_on_gets_nothing_new_until_it_is_released(server: Server) -> None:
    load(server, "one")
    load(server, "two")
    serves = load(server, "serves")
    fault(server, "one", 1)
    server.await_state("one", "ready")
    fault(server, "one", 2)
    one = eventually(lambda: [each for each in server.pids("one") if server.model("one")["state"] == "ready"], "back")
    assert not server.events("device_set_aside")
    fault(server, "two", 1)
    event = server.await_event("device_set_aside")
    assert event["device"] == FIRST
    assert "cuda:0 (NVIDIA H200) is set aside: 3 GPU faults within 10 min, of workers of one, two" in event["text"]

    reason = server.await_state("two", "backoff")["reason"]
    assert "cuda:0 (NVIDIA H200) is set aside: 3 GPU faults" in reason
    status, reply = call(server, "two", 1.0, 2.0)
    assert (status, reply["retryable"]) == (503, False), reply
    assert "is set aside" in reply["error"]
    with pytest.raises(ServerRefused, match=r"failed to load 'two': .* is set aside: 3 GPU faults") as refused:
        server.ctl("load", name="two")
    assert refused.value.code == "gpu_fault"
    load(server, "elsewhere", "cuda")
    assert [device(server)["workers"], device(server, SECOND)["workers"]] == [2, 1]
    assert (server.pids("one"), server.pids("serves")) == (one, [serves])
    assert call(server, "serves", 1.0, 2.0)[0] == 200
    assert gauges(server, "mmsup_device_set_aside") == [1.0]
    assert gauges(server, "mmsup_device_set_aside", SECOND) == [0.0]

    os.kill(server.status()["brain"]["pid"], signal.SIGKILL)
    server.await_event("readopted")
    assert device(server)["set_aside"]
    assert device(server)["reason"] == "3 GPU faults within 10 min, of workers of one, two"

    assert server.ctl("devices_release", device="cuda:0") == {"released": [FIRST]}
    server.await_state("two", "ready")
    assert call(server, "two", 1.0, 2.0)[0] == 200
    assert server.await_event("device_released")["device"] == FIRST
    assert not device(server)["set_aside"]
    assert server.ctl("devices_release", device=FIRST) == {"released": []}


@pytest.mark.fault("F19")
def test_one_model_alone_takes_no_device_from_its_neighbours_unless_the_driver_counts_errors_too(
    server: Server, nvml: FakeNvml
) -> None:
    before = len(server.events("device_set_aside"))
    load(server, "broken")
    for number in (1, 2, 3):
        server.await_state("broken", "ready")
        fault(server, "broken", number)
    load(server, "neighbour")
    assert len(server.events("device_set_aside")) == before
    nvml.set_cards(Card(FIRST, errors=2), Card(SECOND))
    text = server.await_event("device_set_aside", count=before + 1)["text"]
    assert "of workers of broken; NVML counts 2 memory errors there that nothing corrected" in text
    assert call(server, "neighbour", 1.0, 2.0)[0] == 200


@pytest.mark.fault("F20")
def test_the_next_load_waits_until_the_memory_of_the_dead_is_back(server: Server, nvml: FakeNvml) -> None:
    pid = load(server, "large")
    holding = Card(FIRST, free_bytes=10 * GIB, held=((pid, 70 * GIB),))
    nvml.set_cards(holding, Card(SECOND))
    eventually(lambda: device(server)["memory_used_bytes"] == 70 * GIB, "NVML shows what it holds")
    os.kill(pid, signal.SIGKILL)
    server.await_event("worker_exit", "large")
    looks = nvml.looks()
    eventually(lambda: nvml.looks() > looks + 3, "NVML is asked again and again")
    assert server.model("large")["state"] == "absent"
    assert len(server.events("worker_spawn", "large")) == 1
    nvml.set_cards(Card(FIRST, free_bytes=79 * GIB), Card(SECOND))
    server.await_state("large", "ready")
    assert call(server, "large", 1.0, 2.0)[0] == 200
    assert not server.events("load_failed", "large")


@pytest.mark.fault("F20")
def test_memory_that_does_not_come_back_is_said_with_need_free_and_device(server: Server, nvml: FakeNvml) -> None:
    pid = load(server, "big")
    nvml.set_cards(Card(FIRST, free_bytes=10 * GIB, held=((pid, 70 * GIB),)), Card(SECOND))
    eventually(lambda: device(server)["memory_used_bytes"] == 70 * GIB, "NVML shows what it holds")
    os.kill(pid, signal.SIGKILL)
    server.await_event("worker_exit", "big")
    began = time.monotonic()
    reason = server.await_event("load_failed", "big")
    assert WAIT_S - 1.0 < time.monotonic() - began < WAIT_S + 5.0
    words = "cuda:0 (NVIDIA H200) has 10GiB of memory free, and 70GiB are needed: what a worker that ended held there"
    assert (reason["code"], words in reason["text"]) == ("insufficient_gpu_memory", True), reason
    http = server.http()
    status, reply = http.json("POST", "/v2/repository/models/big/load", {})
    http.close()
    assert (status, reply["code"]) == (507, "insufficient_gpu_memory"), reply
    assert words in reply["error"]
    load(server, "other", "cuda")
    assert device(server, SECOND)["workers"] == 1
    nvml.set_cards(Card(FIRST, free_bytes=79 * GIB), Card(SECOND))
    server.await_state("big", "ready")


@pytest.mark.fault("F21")
def test_nvml_that_hangs_is_killed_and_its_figures_are_withheld_until_it_answers_again(
    server: Server, nvml: FakeNvml
) -> None:
    load(server, "m")
    brain = server.status()["brain"]["pid"]
    (helper,) = helpers_of(brain)
    nvml.set_cards(Card(FIRST, free_bytes=20 * GIB), Card(SECOND))
    eventually(lambda: gauges(server, "nv_gpu_memory_used_bytes") == [60 * GIB], "the metric follows")
    assert gauges(server, "mmsup_device_reading_age_seconds")[0] < 60
    nvml.set_cards(Card(FIRST, lost=True), Card(SECOND, lost=True))  # nor does the helper's successor hear anything
    os.kill(helper, signal.SIGSTOP)
    event = server.await_event("gpu_silent")
    assert "NVML did not answer within 3 s" in event["text"]
    assert device(server)["stale"]
    eventually(lambda: not gauges(server, "nv_gpu_memory_used_bytes"), "no value rather than an old one")
    assert not gauges(server, "nv_gpu_memory_total_bytes")
    assert gauges(server, "mmsup_device_reading_age_seconds")[0] > 3
    assert helper not in helpers_of(brain)
    assert call(server, "m", 1.0, 2.0)[0] == 200
    os.kill(server.pid("m"), signal.SIGKILL)
    server.await_event("worker_ready", "m", 2)  # nobody waits for a word of NVML
    nvml.set_cards(Card(FIRST, free_bytes=30 * GIB), Card(SECOND))
    server.await_event("gpu_back")
    eventually(lambda: gauges(server, "nv_gpu_memory_used_bytes") == [50 * GIB], "the metric is there again")
    assert device(server)["device"] == "cuda:0"


def held_call(server: Server, name: str) -> tuple[threading.Thread, list[tuple[int, Json]]]:
    """A request that its model is working on, until its worker ends."""
    replies: list[tuple[int, Json]] = []
    thread = threading.Thread(target=lambda: replies.append(call(server, name, 777.0, 0.0)))
    thread.start()
    eventually(lambda: server.gauge("mmsup_requests_open", model=name) == 1.0, "it is open")
    return thread, replies


@pytest.mark.fault("F18")
def test_memory_that_is_asked_of_the_driver_itself_ends_its_worker_and_nobody_else(
    server: Server, nvml: FakeNvml, pytestconfig: pytest.Config
) -> None:
    for number in range(pytestconfig.getoption("--breaches")):
        name, other = f"asks_{number}", f"keeps_{number}"
        pid, kept = (load(server, each, more="gpu_memory: 4GiB\nhang_limit: 60s") for each in (name, other))
        thread, replies = held_call(server, name)
        held = ((pid, 9 * GIB), (kept, 4 * GIB), (1, 20 * GIB))
        nvml.set_cards(Card(FIRST, free_bytes=47 * GIB, held=held), Card(SECOND))
        thread.join(30)
        row = device(server)
        assert row["rings"] == ["allocator", "watch"]
        assert [(each["model"], each["source"]) for each in row["held_by"] if each["pid"] == kept] == [(other, "nvml")]
        assert [(status, reply["code"]) for status, reply in replies] == [(503, "gpu_oom")], replies
        nvml.set_cards(Card(FIRST), Card(SECOND))
        death = server.await_event("worker_exit", name)
        assert death["cause"] == "gpu memory"
        assert "it held 9GiB of cuda:0 (NVIDIA H200) as NVML counts: gpu_memory is 4GiB" in death["text"]
        server.await_event("worker_ready", name, 2)
        assert call(server, name, 1.0, 2.0)[0] == 200
        assert server.pids(other) == [kept]
        assert not server.events("worker_exit", other)
        for each in (name, other):
            server.ctl("unload", name=each)
