"""Kills the server's own processes under load: controller, gateway, keeper."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.build import write_fault_model, write_identity_onnx, write_python
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Server, eventually, serving
from harness.victim import Victim
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_identity_onnx(tmp_path, "one")
    write_identity_onnx(tmp_path, "two")
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests after which all is served again."""
    home = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        write_identity_onnx(home, name)
    with running(home) as shared:
        yield shared
        everyone = server_processes(shared)
        assert shared.stop() == 0, shared.log()
        assert_gone(shared, everyone)


@contextlib.contextmanager
def loaded(server: Server, name: str, **options: Any) -> Iterator[None]:  # of write_fault_model
    """A fault model."""
    write_fault_model(server.repository, name, **options)
    server.ctl("load", name=name)
    yield
    server.ctl("unload", name=name)


@contextlib.contextmanager
def running(repository: Path, *flags: str) -> Iterator[Server]:
    with serving(repository, *flags) as server:
        http = Http(server.address())
        for name in ("one", "two"):
            assert http.infer(name, x=("FP32", [1], [1.0]))[0] == 200
        http.close()
        yield server


def await_other_brain(server: Server, old: int) -> None:
    eventually(lambda: server.status()["brain"]["pid"] != old, "a new brain")


def await_other_gateway(server: Server, old: int) -> None:
    def looking() -> bool:
        pids = [each["pid"] for each in server.status()["gateways"]]
        return old not in pids and None not in pids

    eventually(looking, f"another gateway than {old}")


@pytest.mark.fault("F25")
def test_a_killed_controller_costs_no_request_and_no_worker(server: Server) -> None:
    before, exits, taken_over = settled(server), len(server.events("worker_exit")), len(server.events("readopted"))
    old = server.status()["brain"]
    with Bystander(server, "one") as one, Bystander(server, "two"):
        os.kill(old["pid"], signal.SIGKILL)
        new = eventually(
            lambda: brain if (brain := server.status()["brain"])["pid"] != old["pid"] else None, "a new brain"
        )
        # Its own work, not the wall clock: on a machine that others load too, its share is anybody's guess.
        times = psutil.Process(new["pid"]).cpu_times()
        assert times.user + times.system < 2.0
        assert new["generation"] == old["generation"] + 1
        one.await_more(20)
    assert len(server.events("readopted")) == taken_over + 1
    assert len(server.events("worker_exit")) == exits
    assert_clean(before, server)


@pytest.mark.fault("F25")
def test_a_worker_that_dies_while_the_controller_is_away_is_answered_for_and_comes_back(server: Server) -> None:
    with loaded(server, "victim", hang_limit="30s"):
        pid, exits = server.pid("victim"), len(server.events("worker_exit"))
        brain = psutil.Process(server.status()["brain"]["pid"])
        brain.suspend()  # away, for as long as it takes: the keeper would replace a dead one at once
        os.kill(pid, signal.SIGKILL)
        brain.kill()
        http = Http(server.address())
        status, reply = http.infer("victim", x=("FP32", [1], [1.0]))
        assert status == 200, reply
        http.close()
        assert server.await_event("worker_exit", "victim")["sig"] == signal.SIGKILL
        assert server.pid("victim") != pid
        assert len(server.events("worker_exit")) == exits + 1


@pytest.mark.fault("F16", "F25")
def test_a_child_that_the_kernel_took_while_the_controller_was_away_ends_its_worker_all_the_same(
    server: Server,
) -> None:
    if not server.status()["isolation"].startswith("cgroup"):
        pytest.skip("no cgroup here: nobody counts what the kernel takes")
    with loaded(server, "parent", memory="192MiB", hang_limit="30s"):
        pid = server.pid("parent")
        http = Http(server.address())
        brain = psutil.Process(server.status()["brain"]["pid"])
        brain.suspend()
        status, reply = http.infer("parent", **mode_of("child", 600.0))
        brain.kill()
        assert (status, reply["code"]) == (500, "inference_failed"), reply
        assert server.await_event("worker_exit", "parent")["oom"] is True
        assert http.infer("parent", x=("FP32", [1], [1.0]))[0] == 200
        assert server.pid("parent") != pid
        http.close()


def mode_of(word: str, amount: float) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Inputs of a fault model."""
    return {"x": ("FP32", [1], [1.0]), "mode": ("BYTES", [1], [word]), "amount": ("FP64", [1], [amount])}


@pytest.mark.fault("F28")
def test_a_controller_that_hangs_is_replaced(server: Server) -> None:
    with Bystander(server, "one") as one:
        old = server.status()["brain"]["pid"]
        os.kill(old, signal.SIGSTOP)
        eventually(lambda: not psutil.pid_exists(old), "the keeper kills the brain that hangs")
        one.await_more(20)
        assert server.status()["brain"]["pid"] != old


@pytest.mark.fault("F25")
def test_controllers_killed_again_and_again_lose_nothing(repository: Path) -> None:
    with running(repository) as server:
        before = settled(server)
        with Bystander(server, "one"):
            for _ in range(3):
                old = server.status()["brain"]["pid"]
                os.kill(old, signal.SIGKILL)
                await_other_brain(server, old)
        assert_clean(before, server)


@pytest.mark.fault("F26")
def test_a_killed_gateway_refuses_nobody_and_touches_no_worker(server: Server) -> None:
    address = server.address()
    pids = server.pids("one") + server.pids("two")
    before, exits = settled(server), len(server.events("gateway_exit"))
    refused: list[str] = []
    connected = 0
    stop = threading.Event()

    def connect() -> None:
        nonlocal connected
        while not stop.is_set():
            connection = http.client.HTTPConnection(*address, timeout=30)
            try:
                connection.connect()
                connected += 1
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection.request("GET", "/v2/health/live")
                    connection.getresponse().read()
            except ConnectionRefusedError as error:
                refused.append(str(error))
            finally:
                connection.close()

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        eventually(lambda: connected > 20, "connections before")
        (gateway,) = server.status()["gateways"]
        os.kill(gateway["pid"], signal.SIGKILL)
        await_other_gateway(server, gateway["pid"])
        at_return = connected
        eventually(lambda: connected > at_return + 20, "connections after")
    finally:
        stop.set()
        thread.join(30)
    assert refused == []
    http_after = Http(address)
    for name in ("one", "two"):
        assert http_after.infer(name, x=("FP32", [1], [2.0]))[0] == 200
    http_after.close()
    assert server.pids("one") + server.pids("two") == pids
    assert len(server.events("gateway_exit")) == exits + 1
    assert_clean(before, server)


@pytest.mark.fault("F25", "F26")
def test_a_gateway_that_dies_while_the_controller_is_away_has_one_successor(server: Server) -> None:
    before, spawned = settled(server), len(server.events("gateway_spawn"))
    brain = psutil.Process(server.status()["brain"]["pid"])
    (gateway,) = server.status()["gateways"]
    brain.suspend()  # away, until the gateway is dead
    os.kill(gateway["pid"], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(gateway["pid"])], timeout=30)
    brain.kill()
    await_other_gateway(server, gateway["pid"])
    http_client = Http(server.address())
    assert http_client.infer("one", x=("FP32", [1], [1.0]))[0] == 200
    http_client.close()
    assert len(server.events("gateway_spawn")) == spawned + 1
    assert_clean(before, server)


@pytest.mark.fault("F25", "F30")
def test_a_start_that_a_dead_controller_had_begun_is_begun_anew_and_those_who_wait_for_it_are_served(
    server: Server,
) -> None:
    with loaded(server, "begun", start="exec"):  # a forked one is further before it can be stopped
        slow = Victim(server, "begun")
        slow.assert_serves()
        before = settled(server)
        os.kill(server.pid("begun"), signal.SIGKILL)
        server.await_event("worker_spawn", "begun", 2)
        (pid,) = eventually(lambda: server.pids("begun"), "its next process")
        psutil.Process(pid).suspend()  # it says nothing of how far it is
        call = slow.in_background()
        slow.await_busy(1)
        assert server.model("begun")["state"] == "starting"
        os.kill(server.status()["brain"]["pid"], signal.SIGKILL)
        status, reply = call.result()
        assert status == 200, reply
        assert len(server.events("worker_spawn", "begun")) == 3
        assert len(server.events("worker_exit", "begun")) == 1, "what we end ourselves is no death"
        assert_clean(before, server)


def runs_of_one_row(server: Server) -> int:
    """Of model `one`, as the statistics tell them."""
    http_client = Http(server.address())
    reply = http_client.json("GET", "/v2/models/one/stats")[1]
    http_client.close()
    assert isinstance(reply, dict)
    (shown,) = reply["model_stats"]
    (batch,) = shown["batch_stats"]
    assert batch["batch_size"] == 1
    return int(batch["compute_infer"]["count"])


@pytest.mark.fault("F26", "F35")
def test_with_two_gateways_one_may_die_and_the_counters_never_fall(repository: Path) -> None:
    with running(repository, "--gateways", "2") as server:
        counted = server.gauge("nv_inference_request_success", model="one")
        assert counted >= 1
        for gateway in server.status()["gateways"]:
            os.kill(gateway["pid"], signal.SIGKILL)
            await_other_gateway(server, gateway["pid"])
            http_client = Http(server.address())
            assert http_client.infer("one", x=("FP32", [1], [1.0]))[0] == 200
            http_client.close()
            now = server.gauge("nv_inference_request_success", model="one")
            assert now == counted + 1
            counted = now
            assert runs_of_one_row(server) == now


@pytest.mark.fault("F27")
def test_a_gateway_that_hangs_is_replaced(server: Server) -> None:
    pid = server.status()["gateways"][0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    await_other_gateway(server, pid)
    http_client = Http(server.address())
    assert http_client.infer("one", x=("FP32", [1], [1.0]))[0] == 200
    http_client.close()


@pytest.mark.fault("F25b")
def test_nothing_survives_the_keeper(repository: Path) -> None:
    write_fault_model(repository, "child", hang_limit="60s")
    with running(repository) as server:
        everyone = server_processes(server).processes
        assert len(everyone) >= 6
        server.process.kill()
        server.process.wait()
        _, alive = psutil.wait_procs(everyone[1:], timeout=10)
        assert not alive


@pytest.mark.fault("F25b")
def test_a_server_that_was_killed_starts_again_over_what_it_left(repository: Path) -> None:
    with running(repository) as server:
        everyone = server_processes(server).processes
        server.process.kill()
        server.process.wait()
        psutil.wait_procs(everyone[1:], timeout=10)
        server.start_again()
        server.await_ready()
        http_client = Http(server.address())
        assert http_client.infer("one", x=("FP32", [1], [1.0]))[0] == 200
        http_client.close()
        assert server.stop() == 0


@pytest.mark.fault("F29")
def test_a_second_server_on_the_same_directories_says_so_and_leaves_the_first_alone(server: Server) -> None:
    with Bystander(server, "one"):
        second = server.second_start()
        assert second.returncode == 3
        assert "holds" in second.stderr
        assert "Traceback" not in second.stderr


@pytest.mark.fault("F31")
def test_sigterm_under_load_finishes_what_was_accepted(repository: Path) -> None:
    write_fault_model(repository, "slow", hang_limit="30s")
    with running(repository) as server:
        slow = Victim(server, "slow")
        call = slow.in_background("sleep", 0.5)
        slow.await_busy(1)
        address = server.address()
        everyone = server_processes(server)
        server.process.send_signal(signal.SIGTERM)
        client = Http(address)
        status, reply = eventually(lambda: late if (late := _late(client))[0] != 200 else None, "unready first")
        assert status == 503
        assert reply["ready"] is False
        assert call.result()[0] == 200
        client.close()
        assert server.process.wait(60) == 0
        assert_gone(server, everyone)


def _late(client: Http) -> tuple[int, dict[str, object]]:
    status, reply = client.json("GET", "/v2/health/ready")
    assert isinstance(reply, dict)
    return status, reply


SLOW_TO_UNLOAD = """
import pathlib
import time


class Model:
    def infer(self, inputs):
        return {"y": inputs["x"]}

    def unload(self):
        home = pathlib.Path(__file__).parent
        (home / "unloading").touch()
        while not (home / "go").exists():
            time.sleep(0.01)
"""


@pytest.mark.fault("F30")
def test_a_controller_that_is_killed_while_it_ends_the_server_is_followed_by_one_that_goes_on(repository: Path) -> None:
    tensor = (TensorSpec("x", "FP32", (-1,)),)
    write_python(repository, "slow", SLOW_TO_UNLOAD, tensor, (TensorSpec("y", "FP32", (-1,)),))
    home = repository / "slow" / "1"
    with running(repository) as server:
        everyone = server_processes(server)
        server.process.send_signal(signal.SIGTERM)
        eventually((home / "unloading").exists, "the worker unloads")
        os.kill(server.status()["brain"]["pid"], signal.SIGKILL)
        began = time.monotonic()
        eventually(lambda: len(server.events("stopping")) >= 2, "another brain that ends the server")
        (home / "go").touch()
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 20.0, "it waited for gateways that had said long ago that they were done"
        assert "worker_exit" not in server.log()
        assert_gone(server, everyone)


@pytest.mark.fault("F31")
def test_a_request_that_outlasts_the_drain_does_not_hold_up_the_end(repository: Path) -> None:
    write_fault_model(repository, "slow", hang_limit="60s")
    with running(repository, "--exit-timeout-secs", "1") as server:
        slow = Victim(server, "slow")
        call = slow.in_background("hold")
        slow.await_busy(1)
        everyone = server_processes(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(60)
        took_s = time.monotonic() - began
        assert 1.0 <= took_s < 20.0
        assert code == 1, "the drain overran its limit"
        status, reply = call.result()
        assert status == 504, reply
        assert "did not finish in the time given to drain" in reply["error"]
        assert_gone(server, everyone)
