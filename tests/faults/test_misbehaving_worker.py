"""A worker whose model forges replies or writes to shared memory: only its own callers are affected."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from engines.hostile_model import write_hostile_model
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Json, Server, serving
from harness.victim import BYSTANDER, bystander_repository

pytestmark = pytest.mark.slow
LARGE = 5_000
"""Elements of a tensor that travels in shared memory."""
SMALL = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [LARGE], [0.0] * LARGE))
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


class Liar:
    """A client of the model."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name

    def send(
        self, mode: str = "ok", amount: float = 0.0, *, size: int = SMALL, timeout_us: int = 0
    ) -> tuple[int, Json]:
        """One call; `amount` goes into the tensor."""
        x = [amount + each for each in range(size)]
        body: Json = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [size], "data": x},
                {"name": "mode", "datatype": "BYTES", "shape": [1], "data": [mode]},
            ]
        }
        if timeout_us:
            body["parameters"] = {"timeout": timeout_us}
        http = Http(self.server.address())
        try:
            status, reply = http.json("POST", f"/v2/models/{self.name}/infer", body)
        finally:
            http.close()
        if status == 200:
            assert reply["outputs"][0]["data"] == x, "bytes of another request"
        return status, reply


@contextlib.contextmanager
def liar(server: Server, name: str, **options: Any) -> Iterator[Liar]:  # of write_hostile_model
    """A misbehaving model beside the bystander; at the end the invariants hold."""
    before = settled(server)
    write_hostile_model(server.repository, name, **options)
    server.ctl("load", name=name)
    made = Liar(server, name)
    for _ in range(2):
        assert made.send(size=LARGE)[0] == 200
    warm = settled(server)
    with Bystander(server, BYSTANDER):
        yield made
    assert_clean(warm, server)
    server.ctl("unload", name=name)
    assert_clean(before, server)


ABOUT_MEMORY = (
    *("offset", "offset before", "offset wraps", "length", "length short", "length negative", "segment"),
    *("need", "places"),
)
ABOUT_WORDS = (
    *("datatype", "datatype longer", "shape", "shape negative", "rank", "twice", "words", "nothing"),
    *("garbage", "nested", "a drop"),
)
ABOUT_AMOUNTS = ("undeclared", "time", "negative time", "code", "records")


@pytest.mark.fault("F38")
@pytest.mark.parametrize(
    ("lies", "size"),
    [
        (ABOUT_MEMORY[:4], LARGE),
        (ABOUT_MEMORY[4:], LARGE),
        (ABOUT_WORDS[:5], SMALL),
        (ABOUT_WORDS[5:], SMALL),
        (ABOUT_AMOUNTS, SMALL),
    ],
)
def test_a_reply_that_lies_fails_its_request_and_ends_its_worker(
    server: Server, lies: tuple[str, ...], size: int
) -> None:
    with liar(server, lies[0].replace(" ", "_")) as hurt:
        for count, lie in enumerate(lies, 1):
            pid = server.pid(hurt.name)
            status, reply = hurt.send(lie, size=size)
            assert (status, reply["code"]) in ((502, "bad_worker_reply"), (503, "worker_crashed")), (lie, reply)
            assert str(pid) not in reply["error"]
            assert server.await_event("worker_exit", hurt.name, count)["cause"] == "bad reply", lie
            server.ctl("load", name=hurt.name)  # a new history: it is not the loop of crashes that is looked at here
            assert hurt.send(size=size)[0] == 200, lie
            assert server.pid(hurt.name) != pid


@pytest.mark.fault("F38")
def test_scribbling_over_all_shared_memory_reaches_nobody_else(server: Server) -> None:
    with liar(server, "scribbles") as hurt:
        assert hurt.send("scribble", size=LARGE)[0] in (200, 502)
        for _ in range(20):
            with contextlib.suppress(AssertionError):  # its own answers are its own to spoil
                hurt.send(size=LARGE)
        assert not server.events("worker_exit", BYSTANDER)
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        assert hurt.send(size=LARGE)[0] == 200


@pytest.mark.fault("F38")
def test_scribbling_over_the_status_page_troubles_no_reader(server: Server) -> None:
    with liar(server, "scribbles_page") as hurt:
        brain, gateways = server.status()["brain"], server.status()["gateways"]
        assert hurt.send("page")[0] == 200
        assert server.ctl("ps")["processes"]
        assert hurt.send()[0] == 200
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        assert hurt.send()[0] == 200
        assert (server.status()["brain"], server.status()["gateways"]) == (brain, gateways)


@pytest.mark.fault("F38")
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_worker_that_wipes_its_page_takes_a_few_others_along_and_not_all(server: Server, size: int) -> None:
    with liar(server, f"wipes_{size}", instances=2) as hurt:
        status, reply = hurt.send("wipe", size=size)
        assert (status, reply["code"], reply["retryable"]) == (503, "worker_crashed", True), reply
        server.await_event("worker_exit", hurt.name, 3)
        assert hurt.send(size=size)[0] == 200
        assert len(server.events("worker_exit", hurt.name)) == 3


@pytest.mark.fault("F38")
def test_a_worker_that_dates_its_run_to_come_is_found_to_hang(server: Server) -> None:
    with liar(server, "to_come", hang_limit="0.5s") as hurt:
        status, reply = hurt.send("busy to come")
        assert (status, reply["code"]) == (504, "worker_hung"), reply
        assert server.await_event("worker_exit", hurt.name)["cause"] == "hung"
        assert hurt.send()[0] == 200


@pytest.mark.fault("F39")
def test_an_output_torn_by_a_death_reaches_nobody(server: Server) -> None:
    with liar(server, "torn") as hurt:
        for count, share in enumerate((0.0, 0.5, 0.999, 1.0), 1):
            status, reply = hurt.send(f"torn {share}", size=LARGE)
            assert (status, reply["code"]) == (503, "worker_crashed"), reply
            assert hurt.server.await_event("worker_exit", hurt.name, count)["sig"] == signal.SIGKILL
            assert hurt.send(amount=float(count), size=LARGE)[0] == 200


@pytest.mark.fault("F41")
def test_a_lost_reply_is_a_504_at_the_deadline_and_the_next_call_gets_its_own_bytes(server: Server) -> None:
    with liar(server, "loses") as hurt:
        status, reply = hurt.send("lost", 100.0, size=LARGE, timeout_us=300_000)
        assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
        assert hurt.send(amount=200.0, size=LARGE)[0] == 200
        os.kill(server.pid(hurt.name), signal.SIGKILL)  # what it never answered holds its slot for as long as it lives
        assert hurt.send(size=LARGE)[0] == 200


@pytest.mark.fault("F41")
def test_a_late_reply_is_dropped_and_meets_no_later_call(server: Server) -> None:
    with liar(server, "late") as hurt:
        status, reply = hurt.send("late", 100.0, size=LARGE, timeout_us=300_000)
        assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
        for amount in range(5):
            assert hurt.send(amount=float(amount), size=LARGE)[0] == 200
        assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F41")
@pytest.mark.parametrize("lie", ["doubled", "unknown", "another's"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_reply_too_many_is_dropped(server: Server, lie: str, size: int) -> None:
    with liar(server, f"{lie.rstrip('s').rstrip(chr(39))}_{size}") as hurt:
        for amount in range(5):
            assert hurt.send(lie, float(amount), size=size)[0] == 200
        assert hurt.send(size=size)[0] == 200
        assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F38")
def test_connections_to_other_models_survive_a_worker_that_lies_about_its_outputs(server: Server) -> None:
    with liar(server, "many_outputs") as hurt:
        gateways = server.status()["gateways"]
        kept = Http(server.address())
        for count in range(1, 6):
            kept.infer(BYSTANDER, x=("FP32", [SMALL], [1.0] * SMALL))
            status, reply = hurt.send("undeclared")
            assert (status, reply["code"]) == (502, "bad_worker_reply"), reply
            assert server.await_event("worker_exit", hurt.name, count)["cause"] == "bad reply"
            server.ctl("load", name=hurt.name)
        kept.infer(BYSTANDER, x=("FP32", [SMALL], [1.0] * SMALL))
        kept.close()
        assert server.status()["gateways"] == gateways
