"""Every way a worker dies or hangs: callers are answered in time with the cause, it restarts, no other notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from engines.build import write_fault_model, write_python
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.server import Http, Server, eventually
from harness.victim import BYSTANDER, HANG_LIMIT_S, Victim, victim
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
ANSWER_S = 0.1
"""Promised time from a death to the answers of requests in flight."""
SLACK_S = 1.0
"""Tolerance for a loaded machine with two cores."""


@pytest.mark.fault("F1")
def test_a_worker_killed_while_idle_is_back_before_anyone_notices(server: Server) -> None:
    with victim(server, "idle_kill") as hurt:
        pid = server.pid(hurt.name)
        os.kill(pid, signal.SIGKILL)
        hurt.assert_serves()
        death = hurt.death()
        assert death["sig"] == signal.SIGKILL
        assert death["oom"] is False
        assert server.pid(hurt.name) != pid


@pytest.mark.fault("F2")
def test_a_worker_killed_with_requests_in_flight_answers_them_and_moves_the_others(server: Server) -> None:
    with victim(server, "busy_kill", hang_limit="30s") as hurt:
        executing = hurt.in_background("sleep", 20)
        hurt.await_busy(1)
        queued = [hurt.in_background("ok") for _ in range(3)]
        hurt.await_busy(4)
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        began = time.monotonic()
        status, reply = executing.result()
        assert time.monotonic() - began < ANSWER_S + SLACK_S
        assert (status, reply["code"], reply["retryable"]) == (503, "worker_crashed", True)
        assert [each.result()[0] for each in queued] == [200, 200, 200]
        assert hurt.death()["sig"] == signal.SIGKILL


@pytest.mark.fault("F3")
@pytest.mark.parametrize(
    ("mode", "amount", "code", "fields"),
    [
        ("segv", 0, "worker_crashed", {"sig": signal.SIGSEGV}),
        ("abort", 0, "worker_crashed", {"sig": signal.SIGABRT}),
        ("fpe", 0, "worker_crashed", {"sig": signal.SIGFPE}),
        ("bus", 0, "worker_sigbus", {"sig": signal.SIGBUS}),
        ("exit", 0, "worker_crashed", {"status": 0}),
        ("exit", 3, "worker_crashed", {"status": 3}),
        ("sysexit", 4, "worker_crashed", {"status": 4}),
    ],
)
def test_a_worker_that_dies_in_a_request_answers_it_and_names_the_cause(
    server: Server, mode: str, amount: int, code: str, fields: dict[str, object]
) -> None:
    with victim(server, f"dies_{mode}_{amount}") as hurt:
        began = time.monotonic()
        status, reply = hurt.send(mode, amount)
        assert time.monotonic() - began < ANSWER_S + SLACK_S
        assert (status, reply["code"]) == (503, code), reply
        assert reply["model"] == hurt.name
        hurt.assert_serves()
        death = hurt.death()
        assert {key: death[key] for key in fields} == fields
        assert len(server.events("worker_exit", hurt.name)) == 1


@pytest.mark.fault("F4")
def test_an_exception_fails_its_request_alone_and_restarts_nothing(server: Server) -> None:
    with victim(server, "raises") as hurt:
        pid = server.pid(hurt.name)
        status, reply = hurt.send("raise")
        assert (status, reply["code"]) == (500, "inference_failed")
        assert "asked to raise" in reply["error"]
        assert str(server.repository) not in reply["error"]
        assert "Traceback" not in reply["error"]
        hurt.assert_serves()
        assert server.pid(hurt.name) == pid
        assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("how", ["SIGSTOP from outside", "stop", "spin", "hang", "deadlock"])
def test_a_worker_that_hangs_is_found_out_killed_and_replaced(server: Server, how: str) -> None:
    name = "hangs_" + how.split(maxsplit=1)[0].lower()
    with victim(server, name, deadline="2s" if how == "spin" else "60s") as hurt:
        pid = server.pid(name)
        mode = "ok" if " " in how else how
        if " " in how:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        status, reply = hurt.send(mode)
        waited = time.monotonic() - began
        # A request that had not begun when its worker stopped goes to the next one, unseen by its client.
        if mode == "ok":
            assert status == 200, reply
        else:
            # A loop computes on to the deadline, which may answer its caller first.
            codes = {"worker_hung", "deadline_exceeded"} if how == "spin" else {"worker_hung"}
            assert status == 504, reply
            assert reply["code"] in codes, reply
        assert waited < (2.0 if how == "spin" else HANG_LIMIT_S) + ANSWER_S + SLACK_S + 2.0
        hurt.assert_serves()
        assert "hung" in hurt.death()["cause"]
        assert server.pid(name) != pid


COMPUTING = """
import time

import numpy as np


class Model:
    def load(self, context): ...

    def infer(self, inputs):
        end_s = time.monotonic() + float(inputs["x"][0])
        while time.monotonic() < end_s:
            pass
        return {"y": inputs["x"]}
"""


def write_computing(server: Server, name: str, **settings: object) -> None:
    """A model that computes for as many seconds as `x` says."""
    tensors = (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),)
    write_python(server.repository, name, COMPUTING, *tensors, settings=settings)
    server.ctl("load", name=name)


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    ("seconds", "settings"),
    [(2.5, {"hang_limit": f"{HANG_LIMIT_S}s"}), pytest.param(30.0, {}, marks=pytest.mark.long)],
)
def test_honest_computation_beyond_the_hang_limit_is_served(
    server: Server, seconds: float, settings: dict[str, object]
) -> None:
    name = f"computes_{seconds:.0f}"
    write_computing(server, name, **settings)
    http = Http(server.address())
    for x in (0.0, seconds, 0.0):
        status, reply = http.infer(name, x=("FP32", [1], [x]))
        assert (status, reply.get("code")) == (200, None), reply
    http.close()
    assert not server.events("worker_exit", name)
    server.ctl("unload", name=name)


BURNER = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print(flush=True)
while True: pass
"""


@pytest.mark.fault("F10", "F24")
@pytest.mark.root
@pytest.mark.alone
def test_a_neighbour_that_takes_the_processor_is_nobodys_hang(server: Server) -> None:
    write_computing(server, "starves", hang_limit=f"{HANG_LIMIT_S}s")
    http = Http(server.address())
    assert http.infer("starves", x=("FP32", [1], [0.0]))[0] == 200
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(server.pid("starves"), {core})
    with subprocess.Popen([sys.executable, "-c", BURNER, str(core)], stdout=subprocess.PIPE) as burner:
        try:
            assert burner.stdout is not None
            assert burner.stdout.readline() == b"\n", "it has the processor"
            status, reply = http.infer("starves", x=("FP32", [1], [4 * HANG_LIMIT_S]))
        finally:
            burner.kill()
    assert status == 200, reply
    http.close()
    assert not server.events("worker_exit", "starves")
    server.ctl("unload", name="starves")


@pytest.mark.fault("F10")
def test_a_slow_first_call_of_a_life_is_served_and_the_same_pause_later_is_a_hang(server: Server) -> None:
    write_fault_model(server.repository, "slow_first", hang_limit=f"{HANG_LIMIT_S}s")
    server.ctl("load", name="slow_first")
    hurt = Victim(server, "slow_first")
    assert hurt.send("sleep", 4 * HANG_LIMIT_S)[0] == 200
    status, reply = hurt.send("sleep", 20)
    assert (status, reply["code"]) == (504, "worker_hung"), reply
    assert "`hang_limit`" in reply["error"], reply
    server.ctl("unload", name="slow_first")


@pytest.mark.fault("F10")
def test_a_hang_in_the_first_call_of_a_later_life_is_found_at_the_hang_limit(server: Server) -> None:
    with victim(server, "hangs_first") as hurt:
        for _ in range(2):
            status, reply = hurt.send("hang")
            assert (status, reply["code"]) == (504, "worker_hung"), reply
            assert "`hang_limit`" in reply["error"], reply


@pytest.mark.fault("F10")
def test_a_request_that_hangs_is_never_forbidden(server: Server) -> None:
    with victim(server, "not_forbidden") as hurt:
        for _ in range(3):
            status, reply = hurt.send("hang")
            assert (status, reply["code"]) == (504, "worker_hung"), reply
            hurt.assert_serves()
        assert not server.events("request_quarantined", hurt.name)


@pytest.mark.fault("F10")
def test_a_worker_stopped_while_idle_is_found_without_any_request(server: Server) -> None:
    with victim(server, "stopped_idle") as hurt:
        pid = server.pid(hurt.name)
        os.kill(pid, signal.SIGSTOP)
        assert "hung" in hurt.death()["cause"]
        hurt.assert_serves()


@pytest.mark.fault("F6")
@pytest.mark.parametrize(
    ("option", "mode"), [("on_load", "raise"), ("on_import", "raise"), ("on_load", "exit"), ("on_load", "segv")]
)
def test_a_model_that_cannot_be_loaded_says_why_and_keeps_nobody_waiting(
    server: Server, option: str, mode: str
) -> None:
    from engines.build import write_fault_model

    name = f"bad_{option}_{mode}"
    before = settled(server)
    write_fault_model(server.repository, name, **{option: mode, "on_load_amount": 3})
    with Bystander(server, BYSTANDER):
        http = Http(server.address())
        status, reply = http.json("POST", f"/v2/repository/models/{name}/load", {})
        assert status == 500, reply
        assert reply["error"].startswith(f"failed to load '{name}'")
        began = time.monotonic()
        status, reply = http.infer(name, x=("FP32", [1], [0.0]))
        assert time.monotonic() - began < SLACK_S
        assert status in (404, 503), reply
        http.close()
    server.ctl("unload", name=name)
    assert_clean(before, server)


@pytest.mark.fault("F7")
def test_a_load_that_hangs_ends_at_its_limit(server: Server) -> None:
    from engines.build import write_fault_model

    before = settled(server)
    write_fault_model(server.repository, "slow_load", on_load="hang", load_timeout="1s")
    with Bystander(server, BYSTANDER):
        http = Http(server.address())
        began = time.monotonic()
        status, reply = http.json("POST", "/v2/repository/models/slow_load/load", {})
        assert (status, reply["code"]) == (504, "load_timeout"), reply
        assert time.monotonic() - began < 1.0 + 2.0 + 2 * SLACK_S
        http.close()
    server.ctl("unload", name="slow_load")
    assert_clean(before, server)


@pytest.mark.fault("F8")
def test_a_crash_loop_is_broken_off_and_answered_at_once(server: Server) -> None:
    with victim(server, "loop") as hurt:
        answers: list[tuple[int, object]] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            status, reply = hurt.send(
                "exit", 7, x=(float(len(answers)),)
            )  # another each time: the same would be refused
            answers.append((status, reply["code"]))
            if reply["code"] == "crash_loop":
                break
        assert answers[-1] == (503, "crash_loop"), answers
        assert server.model(hurt.name)["state"] == "failed"
        began = time.monotonic()
        assert hurt.send()[1]["code"] == "crash_loop"
        assert time.monotonic() - began < SLACK_S
        assert server.events("crash_loop", hurt.name)
        server.ctl("load", name=hurt.name)
        hurt.assert_serves()


@pytest.mark.fault("F5")
def test_memory_that_is_cut_short_under_a_model_is_named(server: Server) -> None:
    with victim(server, "cut_short") as hurt:
        status, reply = hurt.send("truncated")
        assert (status, reply["code"]) == (503, "worker_sigbus"), reply
        hurt.assert_serves()
        assert hurt.death()["sig"] == signal.SIGBUS


@pytest.mark.fault("F11")
def test_a_run_slower_than_its_deadline_is_a_504_and_the_worker_goes_on(server: Server) -> None:
    with victim(server, "late_run", hang_limit="30s") as hurt:
        pid = server.pid(hurt.name)
        for _ in range(3):
            began = time.monotonic()
            status, reply = hurt.send("sleep", 0.6, timeout=200_000)
            assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
            assert time.monotonic() - began < 0.2 + SLACK_S
            hurt.assert_serves()
        assert server.pid(hurt.name) == pid
        assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F50")
def test_a_client_that_leaves_leaves_nothing(server: Server) -> None:
    with victim(server, "left", hang_limit="30s") as hurt:
        http = Http(server.address())
        body = (
            b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[0]},'
            b'{"name":"mode","datatype":"BYTES","shape":[1],"data":["sleep"]},'
            b'{"name":"amount","datatype":"FP64","shape":[1],"data":[0.3]}]}'
        )
        http.connection.request("POST", "/v2/models/left/infer", body)
        hurt.await_busy(1)
        http.close()
        eventually(lambda: server.gauge("mmsup_requests_open", model="left") == 0, "the request is forgotten")
        hurt.assert_serves()
