"""A model that passes a memory cap: the cause is named each time, whatever keeps the cap, and no other model notices.

`--breaches 20` repeats each of them, as `make test-extra` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from harness.constrained_server import NoCgroupServer, needs_namespaces
from harness.invariants import assert_gone, server_processes
from harness.server import Json, Server, eventually
from harness.victim import BYSTANDER, Victim, bystander_repository, victim

pytestmark = [pytest.mark.slow, pytest.mark.root]
CAP_MIB = 192
CAP: Any = {"memory": f"{CAP_MIB}MiB", "hang_limit": "30s"}  # as YAML has it
needs_cgroup = pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.W_OK),
    reason="no writable cgroup v1 memory hierarchy",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Server, id="cgroup", marks=[needs_cgroup, pytest.mark.cgroup1]),
        pytest.param(NoCgroupServer, id="rlimit", marks=[needs_namespaces, pytest.mark.ns]),
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose caps are kept by control groups, and one that has none."""
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    running: Server = request.param(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER)
    try:
        running.await_ready()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)
    finally:
        running.remove()


@pytest.fixture
def times(pytestconfig: pytest.Config) -> range:
    """The numbers of the breaches to bring about."""
    return range(1, pytestconfig.getoption("--breaches") + 1)


def has_cgroup(server: Server) -> bool:
    return bool(server.status()["isolation"].startswith("cgroup"))


def assert_ended_for_memory(hurt: Victim) -> Json:
    """The exit of its worker is put down to its cap, and the model serves again."""
    death = hurt.death()
    assert death["cause"] in ("oom", "memory"), death
    assert f"cap {CAP_MIB}MiB" in death["text"], death
    hurt.assert_serves()
    assert len(hurt.server.events("worker_exit", hurt.name)) == 1
    return death


@pytest.mark.fault("F15")
def test_a_request_that_passes_the_cap_is_told_so(server: Server, times: range) -> None:
    for number in times:
        with victim(server, f"greedy_{number}", **CAP) as hurt:
            status, reply = hurt.send("allocate", 600)
            if has_cgroup(server):
                assert (status, reply["code"], reply["retryable"]) == (503, "worker_oom", False), reply
                assert assert_ended_for_memory(hurt)["oom"]
            else:  # the allocation fails, and the worker lives
                assert (status, reply["code"]) == (500, "inference_failed"), reply
                assert "ran out of memory under its cap" in reply["error"]
                hurt.assert_serves()
                assert not server.events("worker_exit", hurt.name)


@pytest.mark.fault("F16")
def test_children_that_pass_the_cap_together_end_their_worker(server: Server, times: range) -> None:
    for number in times:
        with victim(server, f"children_{number}", **CAP) as hurt:
            status, reply = hurt.send("children", 80)
            assert status in (500, 503), reply
            if status == 503:  # the death of one child may reach the model, and its answer us, first
                assert reply["code"] == "worker_oom", reply
            death = assert_ended_for_memory(hurt)
            if not has_cgroup(server):
                assert (status, death["cause"]) == (503, "memory"), (reply, death)
                assert "in processes that it started" in death["text"]


@pytest.mark.fault("F15")
def test_a_drip_ends_at_the_cap_and_is_put_down_to_it(server: Server, times: range) -> None:
    for number in times:
        with victim(server, f"drips_{number}", **CAP) as hurt:

            def is_full(hurt: Victim = hurt) -> Json:
                status, reply = hurt.send("leak", 16)
                return {} if status == 200 else {"status": status, **reply}

            reply = eventually(is_full, "it meets its cap")
            if has_cgroup(server):
                assert (reply["status"], reply["code"]) == (503, "worker_oom"), reply
                assert assert_ended_for_memory(hurt)["oom"]
            else:
                assert (reply["status"], reply["code"]) == (500, "inference_failed"), reply
                assert "ran out of memory under its cap" in reply["error"]
