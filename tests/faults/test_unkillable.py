"""A worker that SIGKILL does not end is given up in time and replaced; its exit is recorded when it comes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_fault_model
from harness.freezer import frozen, needs_freezer
from harness.invariants import assert_gone, server_processes
from harness.server import Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository, victim

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.cgroup1, needs_freezer]
KILL_LIMIT_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER, "--kill-limit", f"{KILL_LIMIT_S}s")
    with serving(repository, *flags) as running:
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def states(server: Server, name: str) -> dict[int, str]:
    """States of a model's processes by pid."""
    return {each["pid"]: each["state"] for each in server.model(name)["instances"]}


def await_metric(server: Server, name: str, count: int) -> None:
    """Wait for the metric, which follows the state of the controller."""
    eventually(lambda: server.gauge("mmsup_workers_quarantined", model=name) == count, f"the metric says {count}")


@pytest.mark.fault("F12")
def test_a_worker_that_cannot_be_killed_gives_its_place_away_and_is_taken_in_when_it_dies(server: Server) -> None:
    with victim(server, "stuck") as hurt:
        pid = server.pid(hurt.name)
        with frozen(pid) as thaw:
            hurt.assert_serves()  # by another one
            assert server.await_event("worker_quarantined", hurt.name)["pid"] == pid
            assert sorted(states(server, hurt.name).values()) == ["quarantined", "ready"]
            assert states(server, hurt.name)[pid] == "quarantined"
            await_metric(server, hurt.name, 1)
            assert not server.events("worker_exit", hurt.name)
            thaw()
            death = hurt.death()
            assert (death["pid"], death["cause"], death["sig"]) == (pid, "hung", signal.SIGKILL)
        eventually(lambda: list(states(server, hurt.name).values()) == ["ready"], "the dead one is forgotten")
        await_metric(server, hurt.name, 0)
        hurt.assert_serves()


@pytest.mark.fault("F12")
def test_its_callers_are_answered_before_it_is_dead(server: Server) -> None:
    with victim(server, "stuck_busy") as hurt:
        call = hurt.in_background("hang")
        hurt.await_busy()
        with frozen(server.pid(hurt.name)):
            status, reply = call.result()
            assert (status, reply["code"]) == (504, "worker_hung"), reply
            assert not server.events("worker_exit", hurt.name)
            hurt.assert_serves()


@pytest.mark.fault("F12")
def test_unload_and_load_do_not_wait_for_it(server: Server) -> None:
    with victim(server, "stuck_reload") as hurt, frozen(server.pid("stuck_reload")):
        server.await_event("worker_quarantined", hurt.name)
        server.ctl("unload", name=hurt.name)
        eventually(lambda: server.model(hurt.name)["state"] == "quarantined", "only the stuck one is left")
        server.ctl("load", name=hurt.name)
        hurt.assert_serves()


@pytest.mark.fault("F12")
def test_a_controller_that_follows_knows_it_and_takes_it_in(server: Server) -> None:
    with victim(server, "stuck_brain") as hurt:
        pid = server.pid(hurt.name)
        with frozen(pid) as thaw:
            hurt.assert_serves()
            brain = server.status()["brain"]["pid"]
            os.kill(brain, signal.SIGKILL)
            eventually(lambda: server.events("readopted"), "another brain")
            assert states(server, hurt.name)[pid] == "quarantined"
            thaw()
            assert hurt.death()["pid"] == pid
        hurt.assert_serves()


@pytest.mark.fault("F12")
def test_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    write_fault_model(tmp_path, "stuck", hang_limit="0.5s")
    with serving(tmp_path, "--kill-limit", f"{KILL_LIMIT_S}s") as server:
        pid = server.pid("stuck")
        with frozen(pid):
            server.await_event("worker_quarantined", "stuck")
            began = time.monotonic()
            assert server.stop() == 0, server.log()
            assert time.monotonic() - began < 20.0
            assert os.path.exists(f"/proc/{pid}")
