"""More models than the budget of memory holds: each is loaded when it is asked, and others make room for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.build import write_python
from harness.bystander import Bystander
from harness.invariants import cgroup_tops
from harness.server import EVENT_S, Server, eventually, serving
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
CODE = """
import numpy as np

class Model:
    def load(self, context):
        self.held = np.ones({mib} << 17)

    def infer(self, inputs):
        return {{"y": inputs["x"] * {factor}}}
"""
SMALL = {"m0": 2.0, "m1": 3.0, "m2": 4.0, "m3": 5.0}
LARGE = {"large": 6.0, "larger": 7.0}
FACTORS = SMALL | LARGE
PAIR = ("pair_a", "pair_b")
"""Of one co-location group."""
BUDGET = 230 << 20
ROOM = 40 << 20
"""Less than what is kept available, and less than any of the models needs."""


def write_model(repository: Path, name: str, factor: float, mib: int, **settings: object) -> None:
    tensors = (TensorSpec("x", "FP32", (-1,)),)
    code = CODE.format(mib=mib, factor=factor)
    write_python(repository, name, code, tensors, (TensorSpec("y", "FP32", (-1,)),), settings=settings)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The budget holds the bystander and two of the small ones, or one of the large ones."""
    repository = tmp_path_factory.mktemp("repository")
    write_model(repository, "bystander", 1.0, mib=1, pin=True)
    write_model(repository, "started", 1.0, mib=1, load="start")
    for name, factor in FACTORS.items():
        write_model(repository, name, factor, mib=60 if name in SMALL else 130)
    write_model(repository, "heavy", 8.0, mib=170, evict=False)
    for name in PAIR:
        write_model(repository, name, 1.0, mib=40, group="pair")
    flags = ("--model-control-mode", "on-demand", "--memory-budget", str(BUDGET), "--zygotes", "eager")
    with serving(repository, *flags, "--gateways", "2") as made:
        yield made


def ask(server: Server, name: str, value: float = 1.0) -> float:
    """The seconds that the answer took, which must be right."""
    http, began_s = server.http(), time.monotonic()
    status, answer = http.infer(name, x=("FP32", [1], [value]))
    http.close()
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == [value * FACTORS.get(name, 1.0)]
    return time.monotonic() - began_s


def held_bytes(server: Server) -> int:
    return int(server.ctl("status")["memory"]["pools"][0]["in_use_bytes"])


def evictions_so_far(server: Server) -> float:
    return server.gauge("mmsup_evictions_total", reason="budget")


def evicted(server: Server) -> list[dict[str, Any]]:
    """The events of evictions, of which the server keeps the last ones."""
    return [each for each in server.events("model_asleep") if each["reason"] == "evicted"]


def in_threads(calls: list[Callable[[], object]]) -> list[str]:
    """What went wrong in these calls, made side by side."""
    faults: list[str] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except (AssertionError, OSError, HTTPException) as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=run, args=(each,)) for each in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return faults


@pytest.mark.fault("F65")
def test_each_model_is_served_when_it_is_asked_and_the_budget_holds(server: Server) -> None:
    with Bystander(server, "bystander"):
        for name in FACTORS:
            ask(server, name)  # now each is measured
        for name in FACTORS:
            ask(server, name)
            eventually(lambda: held_bytes(server) <= BUDGET, "what workers grow by is given back by others")
    assert server.model("bystander")["state"] == "ready"
    assert server.model("started")["state"] == "ready", "a model that is loaded at the start does not go"
    choices = evicted(server)
    assert {each["model"] for each in choices} >= set(SMALL)
    last = choices[-1]
    assert last["for_model"] == "larger"
    assert last["held_bytes"] > 60 << 20
    assert last["return_s"] > 0
    (room,) = [each for each in server.events("room_made", "larger") if each["time"] >= last["time"]]
    assert last["model"] in room["evicted"]
    assert server.gauge("mmsup_evictions_total", reason="budget") == len(choices)


def test_why_tells_both_sides_of_an_eviction(server: Server) -> None:
    for name in ("large", "m0", "m1", "large"):  # now each is measured
        ask(server, name)
    text = " ".join(server.ctl("why", name="m1")["sentences"])
    assert "its memory was needed for large" in text
    text = " ".join(server.ctl("why", name="large")["sentences"])
    assert "of host memory were missing for it" in text
    assert "m1" in text
    assert "needed for large" in server.model("m1")["reason"]


@pytest.mark.fault("F65")
def test_a_group_goes_as_one_and_each_of_its_models_comes_back_when_it_is_asked(server: Server) -> None:
    for name in ("large", *PAIR, *PAIR):
        ask(server, name)
        eventually(lambda: held_bytes(server) <= BUDGET, "each is measured, and room was made")
    (pid,) = {server.pid(name) for name in PAIR}
    with Bystander(server, "bystander"):
        ask(server, "large")
        assert {server.model(name)["state"] for name in PAIR} == {"asleep"}
        assert not psutil.pid_exists(pid)
        for name in PAIR:
            (went,) = server.events("model_asleep", name)[-1:]
            assert (went["reason"], went["for_model"]) == ("evicted", "large")
        faults = in_threads([partial(ask, server, name) for name in PAIR * 4])
    assert faults == []
    assert len({server.pid(name) for name in PAIR}) == 1
    assert server.model("large")["state"] == "asleep"


@pytest.mark.fault("F65")
@pytest.mark.parametrize("evictions", [6, pytest.param(100, marks=pytest.mark.long)])
def test_two_that_do_not_fit_together_take_turns_and_nobody_fails(evictions: int, server: Server) -> None:
    for name in LARGE:
        ask(server, name)  # each is measured
    before, took = evictions_so_far(server), {name: list[float]() for name in LARGE}
    is_over = threading.Event()

    def client(name: str) -> None:
        while not is_over.is_set():
            took[name].append(ask(server, name))

    def are_over() -> bool:
        return evictions_so_far(server) >= before + evictions

    def await_end() -> None:
        try:
            eventually(are_over, "each goes for the other", EVENT_S + 5 * evictions)
        finally:
            is_over.set()

    with Bystander(server, "bystander"):
        clients = [partial(client, name) for name in LARGE for _ in range(2)]
        assert in_threads([*clients, await_end]) == []
    went = [each["model"] for each in evicted(server)[-6:]]
    assert {name: went.count(name) for name in LARGE} == dict.fromkeys(LARGE, 3), went
    assert max(map(max, took.values())) < EVENT_S


@pytest.mark.fault("F65")
def test_a_model_that_finds_no_room_to_come_back_says_that_it_was_evicted(server: Server) -> None:
    for name in ("m0", "large"):
        ask(server, name)
    eventually(lambda: server.model("m0")["state"] == "asleep", "it goes, at the latest when both are measured")
    server.ctl("load", name="heavy")  # which does not go for others
    http = server.http()
    status, answer = http.infer("m0", x=("FP32", [1], [1.0]))
    assert (status, answer["code"]) == (503, "evicted"), answer
    assert "of host memory" in answer["error"]
    assert "m0" in answer["error"]
    assert server.model("m0")["state"] == "asleep"
    assert "needed for large" in server.model("m0")["reason"], "as it was"
    server.ctl("unload", name="heavy")
    eventually(lambda: http.infer("m0", x=("FP32", [1], [1.0]))[0] == 200, "it is back")
    http.close()


@contextlib.contextmanager
def limited(server: Server, room_bytes: int) -> Iterator[Path]:
    """Put a limit on the control group of all workers together that leaves so much room, and the controller into it, as
    in a container. The group."""
    (top,) = cgroup_tops(server)
    pid, limit = str(server.ctl("status")["controller"]["pid"]), top / "memory.limit_in_bytes"
    used = int((top / "memory.usage_in_bytes").read_text())
    limit.write_text(str(used + room_bytes))
    try:
        (top / "cgroup.procs").write_text(pid)
        yield top
    finally:
        (top.parent / "cgroup.procs").write_text(pid)
        limit.write_text("-1")


def oom_kills(group: Path) -> int:
    """In the group and those below it."""
    files = group.rglob("memory.oom_control")
    return sum(int(words[-1]) for each in files if (words := each.read_text().split())[-2] == "oom_kill")


@pytest.mark.root
@pytest.mark.cgroup1
@pytest.mark.fault("F17")
def test_a_container_near_its_limit_puts_models_to_sleep_before_the_kernel_kills_and_serves_all(server: Server) -> None:
    """The limit is a real one, in a control group of the server with all of its workers."""
    for name in ("m0", "m1"):
        ask(server, name)
    began_s = server.events()[-1]["time"]
    with Bystander(server, "bystander"), limited(server, ROOM) as group:
        before = oom_kills(group)
        eventually(lambda: len(for_pressure(server, began_s)) > 0, "memory is given back")
        for name in SMALL:
            ask(server, name)
        assert oom_kills(group) == before
    choice = for_pressure(server, began_s)[0]
    assert choice["model"] in SMALL
    assert "its memory was needed by others" in choice["text"]
    assert server.events("memory_pressure")[-1]["given_bytes"] > 0
    assert server.model("started")["state"] == "ready"
    ask(server, "m0")


def for_pressure(server: Server, since: str) -> list[dict[str, Any]]:
    return [each for each in evicted(server) if each.get("needed_by") == "pressure" and each["time"] > since]
