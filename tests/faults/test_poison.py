"""Poison requests: identified at the second death and refused from then on, while innocent requests are served.

The victim aborts on request. What a death leaves behind, and that nobody else notices, `victim` shows.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.invariants import assert_gone, server_processes
from harness.server import Http, Json, Server, eventually, serving
from harness.victim import BYSTANDER, Victim, bystander_repository, victim

pytestmark = pytest.mark.slow
SLACK_S = 1.5
"""Tolerance for a loaded machine with two cores."""
RETRIED: Any = {"hang_limit": "30s", "retry_on_crash": True}  # options of `victim`
PLAIN: Any = {"hang_limit": "30s"}  # as above
EVIL = (13.0, 13.0, 13.0)
LARGE = (13.0,) * 80_000
"""Larger than what the event loop parses itself."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [len(LARGE)], [0.0] * len(LARGE)))  # its threads and its memory are there
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def deaths(hurt: Victim) -> int:
    return len(hurt.server.events("worker_exit", hurt.name))


def assert_died(hurt: Victim, count: int) -> None:
    """Exactly `count` workers have died; the answer to a death may precede its event."""
    hurt.death(count)
    assert deaths(hurt) == count


def blocked(hurt: Victim) -> list[Json]:
    rows = hurt.server.ctl("quarantine", model=hurt.name)["requests"]
    return [each for each in rows if each["state"] == "blocked"]


def outcome(answer: tuple[int, Json]) -> tuple[int, object, object]:
    status, reply = answer
    return status, reply.get("code"), reply.get("retryable")


def assert_refused(hurt: Victim, pid: int) -> None:
    """Send the poison request again: it is refused without reaching a worker."""
    died = deaths(hurt)
    status, reply = hurt.send("abort", x=EVIL)
    assert (status, reply["code"], reply["retryable"]) == (422, "request_quarantined", False), reply
    assert hurt.name in reply["error"]
    assert hurt.server.pid(hurt.name) == pid
    assert deaths(hurt) == died


@pytest.mark.fault("F13")
def test_of_a_batch_that_died_the_innocent_are_answered_and_the_poison_is_refused_from_then_on(server: Server) -> None:
    with victim(server, "batch", max_batch_size=8, **RETRIED) as hurt:
        with hurt.held():
            calls = hurt.queued(*[{"x": (float(each), 0.0, 0.0)} for each in range(4)])
            poison = hurt.queued({"mode": "abort", "x": EVIL})[0]
            calls += hurt.queued(*[{"x": (float(each), 0.0, 0.0)} for each in range(4, 7)])
        for number, each in enumerate(calls):
            status, reply = each.result()
            assert status == 200, reply
            assert reply["outputs"][0]["data"] == [float(number), 0.0, 0.0]
        assert outcome(poison.result()) == (503, "worker_crashed", False)
        hurt.assert_serves()
        assert_died(hurt, 2)
        assert_refused(hurt, server.pid(hurt.name))
        (row,) = blocked(hurt)
        assert (row["version"], row["deaths"]) == ("1", 2)
        assert 0 < row["left_s"] <= 600
        (event,) = server.events("request_quarantined", hurt.name)
        assert (event["fingerprint"], event["deaths"]) == (row["fingerprint"], 2)
        assert server.gauge("mmsup_requests_refused_total", model=hurt.name, code="request_quarantined") == 1


@pytest.mark.fault("F13", "F2")
def test_a_model_that_runs_nothing_twice_finds_the_poison_when_its_callers_try_again(server: Server) -> None:
    with victim(server, "once", max_batch_size=8, **PLAIN) as hurt:
        with hurt.held():
            innocent, poison = hurt.queued({"x": (1.0, 0.0, 0.0)}, {"mode": "abort", "x": EVIL})
        assert outcome(innocent.result()) == outcome(poison.result()) == (503, "worker_crashed", True)
        with hurt.held():
            poison, innocent = hurt.queued({"mode": "abort", "x": EVIL}, {"x": (1.0, 0.0, 0.0)})
        assert outcome(poison.result()) == (503, "worker_crashed", False)
        assert innocent.result()[0] == 200, "it is apart from the other suspect now"
        hurt.assert_serves()
        assert_refused(hurt, server.pid(hurt.name))
        assert_died(hurt, 2)
        assert server.ctl("quarantine_clear", model=hurt.name) == {"model": hurt.name, "cleared": 1}
        assert not blocked(hurt)
        assert outcome(hurt.send("abort", x=EVIL)) == (503, "worker_crashed", True), "as if it had never been here"
        assert_died(hurt, 3)


@pytest.mark.fault("F4")
def test_an_exception_in_a_batch_fails_its_request_alone_and_makes_no_suspect(server: Server) -> None:
    with victim(server, "raises_in_batch", max_batch_size=8, **RETRIED) as hurt:
        pid = server.pid(hurt.name)
        with hurt.held():
            raises, *others = hurt.queued(
                {"mode": "raise", "x": EVIL}, *[{"x": (float(each), 0.0, 0.0)} for each in range(3)]
            )
        assert outcome(raises.result()) == (500, "inference_failed", False)
        for number, each in enumerate(others):
            status, reply = each.result()
            assert status == 200, reply
            assert reply["outputs"][0]["data"] == [float(number), 0.0, 0.0]
        assert server.pid(hurt.name) == pid
        assert server.ctl("quarantine", model=hurt.name) == {"requests": []}
        assert deaths(hurt) == 0


@pytest.mark.fault("F13")
@pytest.mark.parametrize("mode", ["segv", "kill", "exit"])
def test_whatever_ends_the_worker_is_poison_and_so_are_large_inputs(server: Server, mode: str) -> None:
    with victim(server, f"large_{mode}", largest=len(LARGE), **RETRIED) as hurt:
        assert outcome(hurt.send(mode, 3, x=LARGE)) == (503, "worker_crashed", False)
        assert outcome(hurt.send(mode, 3, x=LARGE))[:2] == (422, "request_quarantined")
        assert hurt.send("ok", 3, x=LARGE)[0] == 200
        assert_died(hurt, 2)


@pytest.mark.fault("F13")
def test_another_content_of_the_model_begins_with_a_clean_list(server: Server) -> None:
    with victim(server, "renewed", **RETRIED) as hurt:
        assert outcome(hurt.send("abort", x=EVIL)) == (503, "worker_crashed", False)
        hurt.assert_serves()
        assert_refused(hurt, server.pid(hurt.name))
        server.ctl("load", name=hurt.name)
        eventually(lambda: len(server.pids(hurt.name)) == 1, "the former worker is gone")
        assert_refused(hurt, server.pid(hurt.name))
        code = server.repository / hurt.name / "1" / "model.py"
        code.write_text(code.read_text().replace("os.abort()", "pass"))
        server.ctl("load", name=hurt.name)
        assert hurt.send("abort", x=EVIL)[0] == 200
        assert not blocked(hurt)


@pytest.mark.fault("F13", "F15")
def test_out_of_memory_is_not_tried_again_and_the_same_again_is_refused_in_the_end(server: Server) -> None:
    if not server.status()["isolation"].startswith("cgroup"):
        pytest.skip("no cgroup here: memory over the cap is an exception in the model")
    with victim(server, "memory", memory="192MiB", **RETRIED) as hurt:
        for died in (1, 2):
            assert outcome(hurt.send("allocate", 600)) == (503, "worker_oom", False)
            hurt.assert_serves()
            assert_died(hurt, died)
        assert outcome(hurt.send("allocate", 600)) == (422, "request_quarantined", False)
        assert_died(hurt, 2)


@pytest.mark.fault("F2")
def test_a_request_of_a_worker_that_was_killed_is_run_again_on_the_other_one(server: Server) -> None:
    with victim(server, "other", instances=2, on_load="sleep", on_load_amount=3.0, **RETRIED) as hurt:
        with hurt.held(x=(7.0, 0.0, 0.0)) as one, hurt.held(x=(8.0, 0.0, 0.0)) as other:  # one at each
            os.kill(server.pids(hurt.name)[0], signal.SIGKILL)
            hurt.death()
        for call, x in ((one, 7.0), (other, 8.0)):
            status, reply = call.result()
            assert status == 200, reply
            assert reply["outputs"][0]["data"] == [x, 0.0, 0.0]
        assert len(server.events("worker_ready", hurt.name)) == 2, "answered before a third life was there"
        server.await_event("worker_ready", hurt.name, 3)
        assert_died(hurt, 1)


@pytest.mark.fault("F2")
def test_a_deadline_that_leaves_no_time_for_another_run_is_answered_with_the_death(server: Server) -> None:
    with victim(server, "late", on_load="sleep", on_load_amount=2.0, deadline="500ms", **RETRIED) as hurt:
        began = time.monotonic()
        assert outcome(hurt.send("abort", x=EVIL)) == (503, "worker_crashed", True)
        assert time.monotonic() - began < 0.5 + SLACK_S
        server.await_state(hurt.name, "ready")
        eventually(lambda: hurt.send()[0] == 200, "it serves")
        assert_died(hurt, 1)


@contextlib.contextmanager
def found_out(repository: Path, *flags: str) -> Iterator[Victim]:
    """A victim with an identified poison request, on a server of its own."""
    write_fault_model(bystander_repository(repository), "known", **RETRIED)
    with serving(repository, *flags) as server:
        hurt = Victim(server, "known")
        hurt.assert_serves()
        assert outcome(hurt.send("abort", x=EVIL)) == (503, "worker_crashed", False)
        server.await_event("request_quarantined", hurt.name)
        hurt.assert_serves()
        yield hurt
        assert len(server.events("worker_exit")) == 2
        assert server.stop() == 0


@pytest.mark.fault("F13", "F25")
def test_what_one_gateway_found_out_every_gateway_refuses_whatever_becomes_of_the_controller(tmp_path: Path) -> None:
    with found_out(tmp_path, "--gateways", "2") as hurt, Bystander(hurt.server, BYSTANDER):
        assert_refused_everywhere(hurt)
        old = hurt.server.status()["brain"]["pid"]
        os.kill(old, signal.SIGKILL)
        eventually(lambda: hurt.server.status()["brain"]["pid"] != old, "a new brain")
        assert_refused_everywhere(hurt)
        assert len(blocked(hurt)) == 1


@pytest.mark.fault("F13", "F26")
def test_a_gateway_that_comes_later_refuses_what_the_one_before_it_found_out(tmp_path: Path) -> None:
    with found_out(tmp_path) as hurt:
        (gateway,) = hurt.server.status()["gateways"]
        os.kill(gateway["pid"], signal.SIGKILL)
        assert_refused(hurt, hurt.server.pid(hurt.name))


def assert_refused_everywhere(hurt: Victim) -> None:
    """Ask every gateway, by as many connections as that takes."""
    server = hurt.server
    left = {each["pid"] for each in server.status()["gateways"]}
    clients: list[Http] = []
    while left:
        clients.append(Http(server.address()))
        assert len(clients) < 200, f"the gateways {left} take no connection"
        status, reply = clients[-1].json("POST", f"/v2/models/{hurt.name}/infer", hurt.call("abort", x=EVIL))
        assert (status, reply["code"]) == (422, "request_quarantined"), reply
        port = clients[-1].connection.sock.getsockname()[1]
        left -= {pid for pid in left if port in peers(pid)}
    for each in clients:
        each.close()


def peers(pid: int) -> set[int]:
    """Ports of the clients connected to a process."""
    return {each.raddr.port for each in psutil.Process(pid).net_connections("tcp") if each.raddr}
