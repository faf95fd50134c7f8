"""One model loaded and unloaded by many clients at once: serialized, each with an answer."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from collections import Counter

import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.invariants import assert_clean, settled
from harness.server import Http, Json, Server, eventually
from harness.victim import BYSTANDER, victim

pytestmark = pytest.mark.slow
CALLERS = 32
ROUNDS = 4


def ask(server: Server, name: str, verb: str) -> tuple[int, Json]:
    """Load or unload over HTTP."""
    http = Http(server.address(), timeout_s=60.0)
    try:
        return http.json("POST", f"/v2/repository/models/{name}/{verb}", {})
    finally:
        http.close()


class Callers:
    """Many concurrent clients, each with a random sequence of loads and unloads."""

    def __init__(self, server: Server, name: str) -> None:
        self.outcomes: Counter[tuple[str, int, str]] = Counter()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(server, name, random.Random(seed))) for seed in range(CALLERS)
        ]

    def run(self) -> None:
        for each in self._threads:
            each.start()
        for each in self._threads:
            each.join(120)
            assert not each.is_alive(), f"a caller has no answer; the others: {self.outcomes}"

    def _run(self, server: Server, name: str, rng: random.Random) -> None:
        for _ in range(ROUNDS):
            verb = rng.choice(("load", "unload"))
            status, reply = ask(server, name, verb)
            with self._lock:
                self.outcomes[verb, status, reply["code"] if status != 200 else ""] += 1


@pytest.mark.fault("F54")
def test_many_load_and_unload_one_model_at_once(server: Server) -> None:
    with victim(server, "wanted") as hurt:
        brain = server.status()["brain"]
        callers = Callers(server, hurt.name)
        callers.run()
        allowed = {("load", 200, ""), ("unload", 200, ""), ("load", 409, "conflict")}
        assert set(callers.outcomes) <= allowed, callers.outcomes
        assert sum(callers.outcomes.values()) == CALLERS * ROUNDS
        server.ctl("load", name=hurt.name)
        hurt.assert_serves()
        assert server.status()["brain"] == brain
        assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F54")
def test_an_unload_lets_the_call_in_flight_finish(server: Server) -> None:
    with victim(server, "unloaded_busy", hang_limit="30s") as hurt:
        with hurt.held() as held:
            assert ask(server, hurt.name, "unload")[0] == 200
            assert hurt.send()[0] in (400, 404, 503)
        assert held.result()[0] == 200
        server.ctl("load", name=hurt.name)


@pytest.mark.fault("F54")
def test_whoever_waits_for_a_restart_is_answered_by_the_load_that_takes_its_place(server: Server) -> None:
    with victim(server, "replaced", on_load="sleep", on_load_amount=0.5, hang_limit="30s") as hurt:
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        server.await_event("worker_spawn", hurt.name, 2)
        (waits,) = hurt.queued({})
        assert ask(server, hurt.name, "load")[0] == 200
        assert waits.result()[0] == 200, waits.result()
        assert len(server.events("worker_ready", hurt.name)) == 2, "the one that was started again was to be replaced"


@pytest.mark.fault("F54")
def test_two_loads_of_one_content_are_one_load(server: Server) -> None:
    with victim(server, "twice") as hurt:
        assert ask(server, hurt.name, "unload")[0] == 200
        spawned = len(server.events("worker_spawn", hurt.name))
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(ask(server, hurt.name, "load")[0])) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert results == [200] * 8
        assert len(server.events("worker_spawn", hurt.name)) - spawned <= 2  # one more if a caller came after the rest


def states(server: Server, name: str) -> list[str]:
    """The state of a model; empty while it is unknown."""
    return [each["state"] for each in server.status()["models"] if each["name"] == name]


@pytest.mark.fault("F54")
def test_a_model_whose_files_go_while_it_is_loaded_fails_with_a_reason(server: Server) -> None:
    before = settled(server)
    name = "goes_away"
    write_fault_model(server.repository, name, on_load="hold", load_timeout="20s")
    with Bystander(server, BYSTANDER):
        results: list[tuple[int, Json]] = []
        loading = threading.Thread(target=lambda: results.append(ask(server, name, "load")))
        loading.start()
        eventually(lambda: "loading" in states(server, name), "it is being loaded")
        home = server.repository / name
        go = home / "1" / "go"
        go.touch()  # it was read into memory by now, and goes on from there
        eventually(lambda: not go.exists(), "it went on")
        shutil.rmtree(home)
        loading.join(60)
        assert results[0][0] in (200, 400, 404, 500), results
        status, reply = ask(server, name, "load")
        assert status in (400, 404), reply
        assert str(server.repository) not in reply["error"]
    ask(server, name, "unload")
    assert_clean(before, server)
