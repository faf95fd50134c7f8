"""Models that are asleep until somebody asks for them, as clients and operators see that."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.server import Http, Server, eventually, serving
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_fault_model(repository, "bystander", pin=True)
    for name in ("asked", "described", "raced", "slept", "unloaded"):
        write_fault_model(repository, name)
    write_fault_model(repository, "broken", on_load="raise")
    for name in ("held", "left", "dies", "outlived"):
        write_fault_model(repository, name, on_load="hold")
    write_fault_model(repository, "brief", ttl="1s")
    write_fault_model(repository, "late", on_load="hold", cold_start_timeout="100ms")
    flags = ("--model-control-mode", "on-demand", "--gateways", "2", "--max-cold-requests", "8", "--zygotes", "eager")
    with serving(repository, *flags) as made:
        yield made


class Call(threading.Thread):
    """One inference in a thread."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__()
        self._http, self._path = server.http(), f"/v2/models/{name}/infer"
        self.status, self.is_cold, self.reply = 0, False, b""
        self.start()

    def run(self) -> None:
        with contextlib.closing(self._http):
            self.status, headers, self.reply = self._http.send("POST", self._path, BODY)
            self.is_cold = headers.get("X-Mmsup-Cold") == "1"

    def done(self) -> Call:
        self.join(60)
        assert not self.is_alive(), "no answer"
        return self


def cold_starts(server: Server, name: str) -> float:
    return server.gauge("mmsup_cold_starts_total", model=name)


def let_load(server: Server, name: str) -> None:
    """End the load of a model that waits for it."""
    (server.repository / name / "1" / "go").touch()


def await_waiting(server: Server, name: str, count: int) -> None:
    waits = "mmsup_cold_requests_waiting"
    eventually(lambda: server.gauge(waits, model=name) == count, f"{count} requests wait for {name}")


def test_a_model_that_is_asleep_is_ready_to_be_asked_and_the_first_requests_share_one_load(server: Server) -> None:
    http = server.http()
    assert http.json("GET", "/v2/models/asked/ready") == (200, {"name": "asked", "ready": True, "state": "asleep"})
    index = {each["name"]: each for each in http.json("POST", "/v2/repository/index", {})[1]}
    assert (index["asked"]["state"], index["asked"]["reason"]) == ("READY", "asleep")
    assert http.json("GET", "/v2/health/ready")[0] == 200
    assert server.pids("bystander"), "what is pinned is loaded at the start"
    calls = [Call(server, "asked").done() for _ in range(1)] + [Call(server, "asked") for _ in range(3)]
    assert {each.done().status for each in calls} == {200}
    assert calls[0].is_cold
    assert not Call(server, "asked").done().is_cold
    eventually(lambda: cold_starts(server, "asked") == 1, "one load for all")
    found = server.model("asked")
    assert found["cold_start_s"] > 0
    http.close()


@pytest.mark.fault("F61")
def test_many_first_requests_over_two_gateways_wait_for_one_load_and_bounds_hold(server: Server) -> None:
    with Bystander(server, "bystander"):
        calls = [Call(server, "held") for _ in range(20)]

        def is_settled() -> bool:
            waiting = server.gauge("mmsup_cold_requests_waiting", model="held")
            return waiting + sum(not each.is_alive() for each in calls) == len(calls)

        eventually(is_settled, "each waits or is refused")
        refused = [each for each in calls if not each.is_alive()]
        assert len(refused) >= 20 - 2 * 4
        assert {each.status for each in refused} == {503}
        assert all("max_cold_requests" in json.loads(each.reply)["error"] for each in refused)
        let_load(server, "held")
        waited = [each.done() for each in calls if each not in refused]
        assert {(each.status, each.is_cold) for each in waited} == {(200, True)}
        eventually(lambda: cold_starts(server, "held") == 1, "one load for all")


def test_a_client_that_goes_away_gives_its_place_back(server: Server) -> None:
    http = Http(server.address())
    http.connection.request("POST", "/v2/models/left/infer", BODY)
    await_waiting(server, "left", 1)
    http.close()
    await_waiting(server, "left", 0)
    let_load(server, "left")
    server.await_state("left", "ready")
    assert Call(server, "left").done().status == 200


@pytest.mark.fault("F62")
def test_a_failed_load_answers_those_who_wait_with_its_reason_and_is_not_repeated_for_each(server: Server) -> None:
    with Bystander(server, "bystander"):
        replies = [Call(server, "broken").done() for _ in range(3)]
        assert {each.status for each in replies} == {503}
        assert all("asked to raise" in json.loads(each.reply)["error"] for each in replies)
        assert replies[0].is_cold
        spawned = len(server.events("worker_spawn", "broken"))
        assert all(Call(server, "broken").done().status == 503 for _ in range(20))
        assert len(server.events("worker_spawn", "broken")) <= spawned + 2


def test_a_load_that_takes_longer_than_requests_may_wait_answers_them_and_goes_on(server: Server) -> None:
    call = Call(server, "late").done()
    assert (call.status, call.is_cold) == (503, True)
    assert "`cold_start_timeout`" in json.loads(call.reply)["error"]
    let_load(server, "late")
    server.await_state("late", "ready")
    assert Call(server, "late").done().status == 200


def test_metadata_of_a_model_that_was_never_loaded_loads_it(server: Server) -> None:
    http = server.http()
    status, found = http.json("GET", "/v2/models/described")
    assert (status, [each["name"] for each in found["outputs"]], found["versions"]) == (200, ["y", "runs"], ["1"])
    server.ctl("sleep", name="described")
    assert http.json("GET", "/v2/models/described")[1] == found, "it is remembered"
    assert server.model("described")["state"] == "asleep"
    http.close()


def test_sleep_wake_load_and_unload_mean_four_things(server: Server) -> None:
    with pytest.raises(control_client.ServerRefused, match="pinned"):
        server.ctl("sleep", name="bystander")
    http = server.http()
    assert http.json("POST", "/mmsup/v1/models/bystander/sleep", {})[1]["code"] == "conflict"
    status, found = http.json("POST", "/mmsup/v1/models/slept/wake", {})
    assert (status, found["state"], found["versions"]) == (200, "ready", {"1": "ready"})
    (pid,) = server.pids("slept")
    assert server.ctl("wake", name="slept")["state"] == "ready"
    assert http.json("POST", "/mmsup/v1/models/slept/sleep", {})[1]["state"] == "asleep"
    http.close()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "its memory is given back")
    assert "put to sleep by hand" in server.model("slept")["reason"]
    assert Call(server, "slept").done().is_cold
    server.ctl("unload", name="unloaded")
    assert Call(server, "unloaded").done().status == 404
    with pytest.raises(control_client.ServerRefused, match="ctl load"):
        server.ctl("wake", name="unloaded")
    assert server.ctl("load", name="unloaded")["state"] == "ready"
    assert not Call(server, "unloaded").done().is_cold


def test_requests_that_race_a_sleep_are_served(server: Server) -> None:
    """With bodies that are known, small, large, and BYTES."""
    large = bytes(4 << 20)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1 << 20], "parameters": {"binary_data_size": len(large)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    texts = {"name": "mode", "datatype": "BYTES", "shape": [1], "data": ["ok"]}
    strings = json.dumps({"inputs": [*json.loads(BODY)["inputs"], texts]})
    kinds: list[tuple[bytes | str, dict[str, str]]] = [
        (BODY, {}),
        (strings, {}),
        (head + large, {"Inference-Header-Content-Length": str(len(head))}),
    ]
    stop, failed = threading.Event(), list[bytes]()

    def ask(body: bytes | str, headers: dict[str, str]) -> None:
        http = server.http()
        while not stop.is_set():
            status, _, reply = http.send("POST", "/v2/models/raced/infer", body, headers)
            if status != 200:
                failed.append(reply)
        http.close()

    threads = [threading.Thread(target=ask, args=kind) for kind in kinds]
    for each in threads:
        each.start()
    for _ in range(3):
        server.await_state("raced", "ready")
        server.ctl("sleep", name="raced")
    server.await_state("raced", "ready")
    stop.set()
    for each in threads:
        each.join()
    assert not failed, failed[:3]
    assert len(server.events("model_asleep", "raced")) == 3


def test_a_model_without_a_request_for_its_ttl_is_put_to_sleep_and_one_with_requests_is_not(server: Server) -> None:
    assert Call(server, "brief").done().is_cold
    said = server.await_event("model_asleep", "brief")
    assert said["reason"] == "ttl"
    assert Call(server, "brief").done().is_cold
    assert server.model("bystander")["state"] == "ready"


@pytest.mark.fault("F60")
def test_whoever_waits_for_a_load_whose_worker_dies_is_served_by_the_next_one(server: Server) -> None:
    with Bystander(server, "bystander"):
        calls = [Call(server, "dies") for _ in range(2)]
        await_waiting(server, "dies", 2)
        pid = eventually(lambda: server.pids("dies"), "it is being loaded")[0]
        os.kill(pid, signal.SIGKILL)
        let_load(server, "dies")
        assert {(each.done().status, each.is_cold) for each in calls} == {(200, True)}


@pytest.mark.fault("F63")
def test_requests_that_wait_outlive_the_controller_and_models_stay_asleep_over_gateways(server: Server) -> None:
    with Bystander(server, "bystander"):
        call = Call(server, "outlived")
        await_waiting(server, "outlived", 1)
        os.kill(server.status()["controller"]["pid"], signal.SIGKILL)
        let_load(server, "outlived")
        assert (call.done().status, call.is_cold) == (200, True)
    server.ctl("sleep", name="outlived")
    let_load(server, "outlived")
    pids = [each["pid"] for each in server.status()["gateways"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not {each["pid"] for each in server.status()["gateways"]} & {None, *pids}, "new gateways")
    assert Call(server, "outlived").done().is_cold
