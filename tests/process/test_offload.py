"""Models that are asleep in host memory: their workers stay, hold little, and are back sooner than a load."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
MIB = 64
CODE = """
import json
import os
import time
from pathlib import Path

import numpy as np

class Model:
    def load(self, context):
        self.folder, self.mode = Path(context.directory), context.parameters.get("mode", "")
        time.sleep({load_s})
        self.restore()

    def infer(self, inputs):
        return {{"y": inputs["x"] * self.table[0]}}

    def offload(self):
        self.fail("offload")
        self.table = None

    def restore(self):
        self.fail("restore") if hasattr(self, "table") else None
        self.table = np.full({mib} << 18, {factor}, np.float32)

    def fail(self, move):
        if self.mode == f"{{move}} raise":
            raise RuntimeError("asked to raise")
        if self.mode == f"{{move}} exit":
            os._exit(7)
        if self.mode == f"{{move}} hang":
            time.sleep(600)
"""
FAULTS = ("offload raise", "offload exit", "offload hang", "restore raise", "restore exit", "restore hang")


def write_model(repository: Path, name: str, mode: str = "", **settings: object) -> None:
    tensors = (TensorSpec("x", "FP32", (-1,)),)
    code = CODE.format(mib=MIB, load_s=0.05, factor=1 if name == "bystander" else 3)
    settings = {"parameters": {"mode": mode}, "ttl": "never", **settings}
    write_python(repository, name, code, tensors, (TensorSpec("y", "FP32", (-1,)),), settings=settings)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "bystander", pin=True)
    for name in ("moved", "changed", "killed"):
        write_model(repository, name)
    write_model(repository, "raced", sleep="host-memory")  # however long a busy machine takes
    write_model(repository, "idle", ttl="1s")
    write_model(repository, "unloads", sleep="unload")
    for mode in FAULTS:
        write_model(repository, mode.replace(" ", "-"), mode, hang_limit="1s")
    flags = ("--model-control-mode", "on-demand", "--gateways", "2", "--zygotes", "eager")
    with serving(repository, *flags) as made:
        ask(made, "idle")
        yield made


def ask(server: Server, name: str) -> bool:
    """Whether the model was asleep; its answer must be right."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [2.0]}]}
    with closing(server.http()) as http:
        status, headers, reply = http.send("POST", f"/v2/models/{name}/infer", json.dumps(body))
    assert status == 200, reply
    assert b"6.0" in reply
    return headers.get("X-Mmsup-Cold") == "1"


def put_to_sleep(server: Server, name: str) -> None:
    server.ctl("sleep", name=name)
    assert server.model(name)["state"] == "asleep"


def await_offloaded(server: Server, name: str, count: int = 1) -> None:
    server.await_event("worker_offloaded", name, count)


def await_gone(server: Server, name: str) -> None:
    eventually(lambda: not server.model(name)["instances"], f"no worker of {name} is left")


def test_a_model_sleeps_in_host_memory_with_its_process_and_is_asked_awake(server: Server) -> None:
    assert ask(server, "moved")
    before, pid = server.model("moved"), server.pid("moved")
    put_to_sleep(server, "moved")
    await_offloaded(server, "moved")
    asleep = server.model("moved")
    assert (asleep["asleep_in"], asleep["reason"]) == ("host-memory", "in host memory: it was put to sleep by hand")
    (instance,) = asleep["instances"]
    assert (instance["state"], instance["pid"]) == ("offloaded", pid)
    assert before["instances"][0]["memory_bytes"] - instance["memory_bytes"] > (MIB - 8) << 20
    with closing(server.http()) as http:
        assert http.json("GET", "/v2/models/moved/ready") == (200, {"name": "moved", "ready": True, "state": "asleep"})
        index = {each["name"]: each for each in http.json("POST", "/v2/repository/index", {})[1]}
    assert (index["moved"]["state"], index["moved"]["reason"]) == ("READY", "asleep, in host memory")
    assert ask(server, "moved"), "its first request waits for it, as for a load"
    eventually(lambda: not ask(server, "moved"), "it is awake")
    assert server.pid("moved") == pid
    (footprint,) = server.model("moved")["footprints"]
    assert footprint["offloaded_bytes"] < footprint["settled_bytes"] - ((MIB - 8) << 20)
    assert footprint["restore_s"] > 0
    assert server.gauge("mmsup_model_restore_seconds", model="moved") == pytest.approx(footprint["restore_s"])
    assert server.events("model_asleep", "moved")[-1]["tier"] == "host-memory"


def test_a_model_that_is_to_be_unloaded_when_it_sleeps_is(server: Server) -> None:
    assert ask(server, "unloads")
    put_to_sleep(server, "unloads")
    eventually(lambda: not server.model("unloads")["instances"], "its process ends")
    assert not server.events("worker_offloaded", "unloads")
    assert "`sleep: unload`" in server.events("model_asleep", "unloads")[-1]["text"]


def test_requests_that_race_moves_are_all_answered(server: Server) -> None:
    faults: list[BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            while not over.is_set():
                ask(server, "raced")
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            faults.append(error)

    ask(server, "raced")
    pid = server.pid("raced")
    threads = [threading.Thread(target=run) for _ in range(3)]
    for each in threads:
        each.start()
    for _ in range(6):
        server.ctl("sleep", name="raced")
        server.ctl("wake", name="raced")
    over.set()
    for each in threads:
        each.join()
    assert not faults
    assert server.pid("raced") == pid


def test_a_model_whose_files_have_changed_is_loaded_and_not_restored(server: Server) -> None:
    assert ask(server, "changed")
    pid = server.pid("changed")
    put_to_sleep(server, "changed")
    await_offloaded(server, "changed")
    path = server.repository / "changed" / "1" / "model.py"
    path.write_text(path.read_text() + "\n# another one\n")
    assert ask(server, "changed")
    assert server.pid("changed") != pid


@pytest.mark.fault("F66")
def test_a_worker_that_dies_in_host_memory_leaves_its_model_asleep(server: Server) -> None:
    with Bystander(server, "bystander"):
        assert ask(server, "killed")
        put_to_sleep(server, "killed")
        await_offloaded(server, "killed")
        os.kill(server.pid("killed"), 9)
        eventually(lambda: not server.model("killed")["instances"], "its worker is forgotten")
        found = server.model("killed")
        assert (found["state"], found["asleep_in"]) == ("asleep", "unloaded")
        assert ask(server, "killed")


@pytest.mark.fault("F66")
def test_a_move_that_fails_ends_its_worker_and_the_model_is_loaded_for_who_asks(server: Server) -> None:
    events = {mode.replace(" ", "-"): f"{mode.partition(' ')[0]}_failed" for mode in FAULTS}
    with Bystander(server, "bystander"):
        for name in events:
            server.ctl("wake", name=name)  # not asked: a move before the first run has the limit of a hang too
        pids = {name: server.pid(name) for name in events}
        for name in events:
            put_to_sleep(server, name)
        for name, event in events.items():
            if event == "offload_failed":
                await_gone(server, name)
                assert server.model(name)["asleep_in"] == "unloaded"
        calls = [threading.Thread(target=ask, args=(server, name)) for name in events]
        for each in calls:
            each.start()
        for each in calls:
            each.join()
        for name, event in events.items():
            assert not ask(server, name), "who asked was answered, by a load"
            assert server.pid(name) != pids[name]
            assert server.await_event(event, name)
            put_to_sleep(server, name)
        for name, event in events.items():
            await_gone(server, name)  # its move is not tried again
            assert len(server.events(event, name)) == 1
            assert "its last move failed" in server.events("model_asleep", name)[-1]["text"]


def test_an_idle_model_went_to_host_memory_after_its_ttl_and_was_unloaded_after_another(server: Server) -> None:
    """It was asked before all other tests."""
    server.await_event("model_asleep", "idle", 2)
    first, last = server.events("model_asleep", "idle")[-2:]
    assert (first["tier"], last["tier"]) == ("host-memory", "unloaded")
    assert "in host memory no more" in last["text"]
    eventually(lambda: not server.model("idle")["instances"], "its process ends")
    assert ask(server, "idle")
