"""Faults of a zygote: no worker and no caller notices, and the next worker starts, forked or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, cgroup_tops, server_processes, settled
from harness.server import Json, Server, eventually, serving
from harness.victim import BYSTANDER, Victim, bystander_repository
from mmsup.supervisor.processes.launch_spec import FORK_LIMIT_S

pytestmark = pytest.mark.slow
LIMITS = {"memory.limit_in_bytes": "memory.usage_in_bytes", "memory.max": "memory.current"}
LOAD_S = 30.0
"""Of a small model by exec, on a machine that is busy."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER, "--zygotes", "eager")
    with serving(repository, *flags) as running:
        running.await_zygote()
        running.await_zygote("onnxruntime")
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def load(server: Server, name: str, **options: object) -> tuple[Victim, str]:
    """A new model, and how its worker was started."""
    write_fault_model(server.repository, name, **options)
    server.ctl("load", name=name)
    made = Victim(server, name)
    made.assert_serves()
    (instance,) = server.ctl("show", name=name)["instances"]
    return made, str(instance["start"])


def members(group: Path) -> list[int]:
    return [int(each) for each in (group / "cgroup.procs").read_text().split()]


def numpy_zygote(server: Server) -> Json:
    return server.await_zygote()


@pytest.mark.fault("F55")
def test_a_killed_zygote_costs_nobody_anything_and_is_back(server: Server) -> None:
    first, how = load(server, "before_kill")
    assert how.startswith("forked"), how
    pid, before, zygote = server.pid(first.name), settled(server), numpy_zygote(server)["pid"]
    with Bystander(server, BYSTANDER):
        os.kill(zygote, signal.SIGKILL)
        server.await_event("zygote_exit")
        first.assert_serves()
        second, _ = load(server, "after_kill")
        server.await_zygote(after=zygote)
        third, how = load(server, "forked_again")
        assert how.startswith("forked"), how
    assert server.pid(first.name) == pid
    for each in (second, third):
        server.ctl("unload", name=each.name)
    assert_clean(before, server)
    server.ctl("unload", name=first.name)


@pytest.mark.fault("F55")
def test_a_zygote_that_the_kernel_kills_for_memory_is_back_and_its_end_has_its_cause(server: Server) -> None:
    first, _ = load(server, "before_oom")
    pid, row = server.pid(first.name), numpy_zygote(server)
    group = next((each for top in cgroup_tops(server) for each in top.glob("z*") if row["pid"] in members(each)), None)
    if group is None or not any((group / name).exists() for name in LIMITS):
        pytest.skip("no control groups with a limit of memory here")
    limit, usage = next((group / a, group / b) for a, b in LIMITS.items() if (group / a).exists())
    with Bystander(server, BYSTANDER):
        limit.write_text(usage.read_text())
        names = [f"during_oom_{number}" for number in range(4)]  # the copies that one fork leaves may find room
        for name in names:
            load(server, name)
        ended = eventually(
            lambda: [each for each in server.events("zygote_exit") if "for memory" in each["text"]], "it was killed"
        )
        assert ended[0]["text"].startswith("the zygote for numpy ended: it was killed by the kernel for memory")
        server.await_zygote(after=row["pid"])
        first.assert_serves()
    assert server.pid(first.name) == pid
    for name in (first.name, *names):
        server.ctl("unload", name=name)


@pytest.mark.fault("F56")
def test_a_stopped_zygote_delays_one_start_and_is_replaced(server: Server) -> None:
    first, _ = load(server, "before_stop")
    before, zygote = settled(server), numpy_zygote(server)["pid"]
    with Bystander(server, BYSTANDER):
        os.kill(zygote, signal.SIGSTOP)
        began = time.monotonic()
        second, how = load(server, "while_stopped")
        assert time.monotonic() < began + FORK_LIMIT_S + LOAD_S
        assert how == f"exec: the zygote did not fork it: it did not answer within {FORK_LIMIT_S:g} s"
        assert server.await_event("not_forked", second.name)
        first.assert_serves()
        server.await_zygote(after=zygote)
    server.ctl("unload", name=second.name)
    assert_clean(before, server)
    server.ctl("unload", name=first.name)


def test_a_forked_worker_that_dies_is_forked_again_and_its_death_has_its_cause(server: Server) -> None:
    server.await_zygote()
    made, how = load(server, "dies")
    assert how.startswith("forked"), how
    with Bystander(server, BYSTANDER):
        status, reply = made.send("segv")
        assert (status, reply["code"]) == (503, "worker_crashed")
        made.assert_serves()
    assert made.death()["sig"] == signal.SIGSEGV
    (instance,) = server.ctl("show", name=made.name)["instances"]
    assert (instance["generation"], instance["start"][:6]) == (2, "forked")
    server.ctl("unload", name=made.name)


def test_zygotes_outlive_the_controller_and_fork_for_the_next_one(server: Server) -> None:
    made, _ = load(server, "before_controller")
    pid, zygotes = server.pid(made.name), {each["pid"] for each in server.status()["zygotes"]}
    os.kill(server.status()["controller"]["pid"], signal.SIGKILL)
    eventually(lambda: server.status()["controller"]["generation"] > 1, "the next controller")
    server.await_zygote()
    assert {each["pid"] for each in server.status()["zygotes"]} == zygotes
    assert server.pid(made.name) == pid
    (instance,) = server.ctl("show", name=made.name)["instances"]
    assert instance["start"].startswith("forked")
    other, how = load(server, "after_controller")
    assert how.startswith("forked"), how
    for each in (made, other):
        server.ctl("unload", name=each.name)


def test_a_fork_that_a_dead_controller_had_requested_leaves_one_worker(server: Server) -> None:
    zygote = numpy_zygote(server)["pid"]
    write_fault_model(server.repository, "requested")
    os.kill(zygote, signal.SIGSTOP)
    with Bystander(server, BYSTANDER):
        command = [sys.executable, "-m", "mmsup.supervisor.cli", "ctl", "load", "requested"]
        loading = subprocess.Popen([*command, "--runtime-dir", str(server.runtime_dir)], stderr=subprocess.DEVNULL)
        server.await_event("worker_spawn", "requested")
        os.kill(server.status()["controller"]["pid"], signal.SIGKILL)
        os.kill(zygote, signal.SIGCONT)
        loading.wait()  # it asks again, or says that the server was not there
        Victim(server, "requested").assert_serves()
        eventually(lambda: len(server.pids("requested")) == 1, "one worker")
    server.ctl("unload", name="requested")


@pytest.mark.fault("F58")
def test_an_interpreter_whose_zygote_does_not_come_up_serves_by_exec(server: Server, tmp_path: Path) -> None:
    """The interpreter ends what is not a worker, with an error."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *zygote*) exit 9;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Bystander(server, BYSTANDER):
        first, how = load(server, "own_first", python=str(python))
        assert how.startswith("exec"), how
        ended = eventually(
            lambda: [each for each in server.events("zygote_exit") if "status 9" in each["text"]], "it did not come up"
        )
        assert ended[0]["text"] == "the zygote for numpy ended: it exited with status 9; its workers go on"
        second, how = load(server, "own_second", python=str(python))
        assert how.startswith("exec"), how
        first.assert_serves()
    for each in (first, second):
        server.ctl("unload", name=each.name)
