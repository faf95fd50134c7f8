"""The kernel refuses shared memory for a request or a result: that caller gets an error, and no other notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.failpoint_file import FailpointFile, FailpointSite
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Server, serving
from harness.victim import BYSTANDER, Victim, bystander_repository
from mmsup.ipc.failpoints import FailpointAction

pytestmark = pytest.mark.slow

LARGE = [1.0] * 50_000
STEPS = ("ipc.extent_file", "ipc.extent_fill", "ipc.extent_map")


@dataclass
class Short:
    """A server and its failpoint file."""

    server: Server
    points: FailpointFile


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Short]:
    folder = tmp_path_factory.mktemp("short")
    points, repository = FailpointFile(folder / "range"), bystander_repository(folder / "models")
    flags = ("--model-control-mode", "explicit", "--load-model", BYSTANDER)
    with serving(repository, *flags, env={"MMSUP_FAULT_POINTS": str(points.path)}) as running:
        http = Http(running.address())
        assert http.infer(BYSTANDER, x=("FP32", [len(LARGE)], LARGE))[0] == 200  # its threads are there
        http.close()
        yield Short(running, points)
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@pytest.mark.fault("F36")
@pytest.mark.parametrize(("of", "nth"), [("request", 1), ("result", 2)])
def test_whichever_step_the_kernel_refuses_the_large_request_is_told_so_and_the_next_is_served(
    short: Short, of: str, nth: int
) -> None:
    server = short.server
    before = settled(server)
    with Bystander(server, BYSTANDER):
        for step in STEPS:  # each with a worker of its own, to which no memory has gone yet
            hurt = Victim(server, f"{of}_{step.partition('_')[2]}")
            write_fault_model(server.repository, hurt.name)
            server.ctl("load", name=hurt.name)
            short.points.order(FailpointAction.RAISE, FailpointSite("gateway", step), nth)
            status, reply = hurt.send(x=LARGE)
            assert short.points.disarm(), "the failure came to pass"
            assert (status, reply["code"], reply["retryable"]) == (503, "no_buffer", True), (step, reply)
            hurt.assert_serves()
            assert hurt.send(x=LARGE)[0] == 200
            assert not server.events("worker_exit", hurt.name)
            server.ctl("unload", name=hurt.name)
    assert_clean(before, server)
