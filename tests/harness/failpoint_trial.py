"""One failpoint trial: order a failure, perform an operation, then check every promise.

The promises: the caller gets one outcome; the actual state becomes the desired state on the disk; the calls of the
bystander were all answered, or cut where its gateway died, and none refused; files on the disk can be read; nothing is
left. An upgrade may replace every process; after the first hit of each failpoint a second upgrade succeeds.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from harness.bystander import Bystander
from harness.failpoint_file import FailpointFile, FailpointSite
from harness.fd_store_double import FdStoreDouble
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.operations import ANSWER_S, BYSTANDER, LARGE, Operation, Outcome, Stage, infer
from harness.server import Http, Server, eventually
from mmsup.ipc.failpoints import FailpointAction
from mmsup.supervisor.cli.ctl.control_client import NoServer, ServerRefused

FLAGS = ("--model-control-mode", "explicit", "--load-model", BYSTANDER)
MAX_RESTARTS = 3
"""Deaths of the controller or gateway of one server, after which a new server is used: the restart backoff grows."""
LINES = pytest.StashKey[list[str]]()
"""Lines for the summary at the end of the session."""
PACE_S = 0.01
"""Pause between two calls of the bystander."""
LATE_S = 1.0
"""How long after the operation's outcome a hit may follow."""


@dataclass(frozen=True)
class InjectedFailure:
    """What fails, where, and at which hit."""

    order: FailpointAction
    spot: FailpointSite
    nth: int

    @property
    def ends_keeper(self) -> bool:
        """Whether it kills the keeper itself rather than a forked child before its exec."""
        return self.order is FailpointAction.KILL and self.spot.role == "keeper" and not self.ends_child

    @property
    def ends_child(self) -> bool:
        """Whether it kills a child that the keeper has just forked."""
        return self.order is FailpointAction.KILL and self.spot.name in ("keeper.child_group", "keeper.child_exec")

    def __str__(self) -> str:
        return f"{self.order.name.lower()} at hit {self.nth} of {self.spot}"


class ServerPool:
    """Servers, one after another, armed by one failpoint file."""

    def __init__(self, repository: Path, points: FailpointFile) -> None:
        self._repository = repository
        self._points = points
        self._stage: Stage | None = None
        self._falls: Counter[str] = Counter()

    def server(self) -> Server:
        """Start a server; it is not ready yet. It is the only one: another would come by the points as well, and fail
        at the one that is meant for this one."""
        self.close()
        env = {"MMSUP_FAULT_POINTS": str(self._points.path)}
        return Server(self._repository, *FLAGS, env=env, store=FdStoreDouble("http", "grpc", "metrics"))

    def stage(self) -> Stage:
        """A ready server with the victim unloaded, on which restarts are still immediate."""
        if self._stage is None or max(self._falls.values(), default=0) >= MAX_RESTARTS:
            self.close()
            server = self.server()
            self._stage = Stage(server, self._points)
            server.await_ready()
            self._stage.up()  # so that everything is warm
            self._stage.down()
        return self._stage

    @contextlib.contextmanager
    def watched(self, stage: Stage) -> Iterator[None]:
        """Count the deaths of controllers and gateways in the block."""
        before = self._fallen(stage)
        yield
        self._falls.update(self._fallen(stage) - before)

    @staticmethod
    def _fallen(stage: Stage) -> Counter[str]:
        """Deaths so far; an intended replacement is none."""
        gateways = len(stage.server.events("gateway_exit"))
        return Counter(brain=stage.server.log().count('"brain_exit"'), gateway=gateways)

    def close(self) -> None:
        """Stop the server and check that nothing is left."""
        stage, self._stage = self._stage, None
        self._falls.clear()
        if stage is not None:
            with removed(stage.server):
                everyone = server_processes(stage.server)
                assert stage.server.stop() == 0, stage.server.log()
                assert_gone(stage.server, everyone)

    def abandon(self) -> None:
        """Remove the server after a failed trial."""
        stage, self._stage = self._stage, None
        self._falls.clear()
        if stage is not None:
            print(stage.server.log()[-6000:])
            stage.server.remove()


@contextlib.contextmanager
def removed(server: Server) -> Iterator[None]:
    """Remove the server at the end of the block."""
    try:
        yield
    finally:
        server.remove()


def hits_of(stage: Stage, operation: Operation) -> dict[FailpointSite, int]:
    """The hits of each failpoint in one run of the operation without a failure."""
    stage.models = operation.models
    operation.prepare(stage)
    before = stage.points.hits()
    outcome = operation.run(stage)
    assert outcome.right, outcome
    settle(stage)
    hits = {spot: count - before[spot] for spot, count in stage.points.hits().items() if count > before[spot]}
    stage.down()
    return hits


def attempt(house: ServerPool, operation: Operation, failure: InjectedFailure, expected: int = 0) -> bool:
    """Make one trial. `expected`: hits in a run without a failure. Returns whether the failure happened."""
    stage = house.stage()
    stage.models = operation.models
    warm(stage)
    before = settled(stage.server)
    operation.prepare(stage)
    if failure.ends_keeper:
        return _without_keeper(house, stage, operation, failure)
    with house.watched(stage), _bystander(stage, operation, failure):
        stage.points.order(failure.order, failure.spot, failure.nth)
        outcome = operation.run(stage)
        settle(stage)
        fired = _fired(stage, failure.nth <= expected)
        _judge(stage, operation, outcome, failure)
        converge(stage)
        if operation.renews and fired and failure.nth == 1:
            _again(stage, operation)
    assert_whole(stage)
    stage.down()
    warm(stage)
    assert_clean(before, stage.server)
    return fired


def warm(stage: Stage) -> None:
    """Send a large request, so that a new gateway allocates what it keeps afterwards."""
    client = Http(stage.server.address())
    assert client.infer(BYSTANDER, x=("FP32", [LARGE], [1.0] * LARGE))[0] == 200
    client.close()


def _fired(stage: Stage, is_expected: bool) -> bool:
    """Whether the failure has happened; an expected one may follow the outcome by `LATE_S`."""
    if is_expected:
        with contextlib.suppress(AssertionError):
            eventually(lambda: stage.points.fired, "the failure", LATE_S)
    return stage.points.disarm()


def _bystander(
    stage: Stage, operation: Operation, failure: InjectedFailure
) -> contextlib.AbstractContextManager[object]:
    may_be_cut = operation.cuts or (failure.spot.role == "gateway" and failure.order is not FailpointAction.DELAY)
    return Bystander(stage.server, BYSTANDER, may_be_cut=may_be_cut, stays=not operation.renews, pace_s=PACE_S)


def _judge(stage: Stage, operation: Operation, outcome: Outcome, failure: InjectedFailure) -> None:
    if outcome.right and operation.wanted_after is not None:
        assert stage.is_wanted() is operation.wanted_after, (
            f"{operation.name}: 200, and {stage.is_wanted()} on the disk"
        )
    assert outcome.right or failure.order is not FailpointAction.DELAY, outcome
    if failure.order is FailpointAction.KILL and failure.spot.role in operation.survives:
        assert outcome.right, f"{outcome} with {failure}"
    assert "internal" not in outcome.text, f"{outcome}: nobody foresaw {failure}"
    if outcome.cut:
        assert operation.cuts or failure.spot.role in ("gateway", "keeper"), f"{outcome} with {failure}"


def _again(stage: Stage, operation: Operation) -> None:
    outcome = operation.run(stage)
    assert outcome.right, f"the next one: {outcome}"


def assert_whole(stage: Stage) -> None:
    """Every JSON file of the state directory can be parsed."""
    for path in stage.server.state_dir.rglob("*.json"):
        json.loads(path.read_bytes())


def settle(stage: Stage) -> None:
    """Wait until each model of the operation is loaded or unloaded, as recorded on the disk."""
    for model in stage.models:
        eventually(lambda: stage.is_as_wanted(model), f"{model}: wanted is {stage.is_wanted(model)}")  # noqa: B023 - called here


def converge(stage: Stage) -> None:
    """Settle; then the models of the operation, if wanted, and the bystander answer correctly."""
    settle(stage)
    for model in stage.models:
        if stage.is_wanted(model):
            outcome = infer(stage, 3, model=model)
            assert outcome.right, outcome
    client = Http(stage.server.address())
    status, reply = client.infer(BYSTANDER, x=("FP32", [1], [1.0]))
    client.close()
    assert status == 200, reply


def _without_keeper(house: ServerPool, stage: Stage, operation: Operation, failure: InjectedFailure) -> bool:
    """The keeper dies with all its processes; the same command restores the desired state."""
    server = stage.server
    everyone = server_processes(server)
    stage.points.order(failure.order, failure.spot, failure.nth)
    with ThreadPoolExecutor(1, "operation") as other:  # what it asks of a listener waits for the next keeper
        asked = other.submit(operation.run, stage)
        eventually(lambda: asked.done() or server.process.poll() is not None, "an outcome", ANSWER_S)
        with contextlib.suppress(AssertionError):
            eventually(lambda: server.process.poll() is not None, "the keeper's end", LATE_S)
        fired = stage.points.disarm()
        if fired:
            server.process.wait(10)
            await_gone(everyone.processes)
            assert_whole(stage)
            with _waiting(server):
                server.start_again()
                server.await_ready()
        with contextlib.suppress(ConnectionError, NoServer, ServerRefused, AssertionError):
            asked.result(ANSWER_S)
    converge(stage)
    if fired and operation.renews and failure.nth == 1:
        _again(stage, operation)
    stage.down()
    if fired:
        house.close()
    return fired


@contextlib.contextmanager
def _waiting(server: Server) -> Iterator[None]:
    """A client that connects while there is no keeper is served later: the service manager holds the listener."""
    with socket.create_connection(server.address()) as waiting:
        waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        yield
        waiting.settimeout(10)
        assert waiting.recv(4096).startswith(b"HTTP/1.1 200"), "nobody has served who waited"


def await_gone(processes: list[psutil.Process]) -> None:
    """Wait until the children of a dead keeper are gone."""
    _, alive = psutil.wait_procs(processes[1:], timeout=10)
    assert not alive, "somebody survives the keeper"


# The two operations that begin or end with no server.


def try_start(house: ServerPool, points: FailpointFile, failure: InjectedFailure) -> bool:
    """Start a server: it becomes ready, or reports why not and leaves nothing; the same command then works."""
    points.order(failure.order, failure.spot, failure.nth)
    server = house.server()
    with removed(server):
        try:
            server.await_ready()
            _first_call(server, failure)
            if points.fired and failure.ends_keeper:
                server.process.wait(10)
                raise AssertionError("the keeper died after its server was ready")
        except (AssertionError, NoServer):
            _judge_refusal(server, failure)
            server.start_again()
            server.await_ready()
        return _ends(server, points)


def _judge_refusal(server: Server, failure: InjectedFailure) -> None:
    code = server.process.poll()
    assert code is not None, f"{failure}: neither ready nor ended\n{server.log()}"
    if failure.ends_keeper:
        assert code < 0, server.log()
    else:
        assert code == 1, server.log()
        assert "Traceback" not in server.log(), server.log()
        assert "mmsup: " in server.log(), server.log()


def _first_call(server: Server, failure: InjectedFailure) -> None:
    """The first call after the start; only a failing gateway or keeper may cut it."""
    client = Http(server.address())
    try:
        client.infer(BYSTANDER, x=("FP32", [1], [1.0]))
    except (ConnectionError, HTTPException):
        assert failure.spot.role in ("gateway", "keeper"), failure
    finally:
        client.close()


def _ends(server: Server, points: FailpointFile) -> bool:
    fired = points.disarm()
    client = Http(server.address())
    eventually(lambda: client.infer(BYSTANDER, x=("FP32", [1], [1.0]))[0] == 200, "a load that failed was tried again")
    client.close()
    assert server.store is not None
    assert not server.store.has_stale
    everyone = server_processes(server)
    assert server.stop() == 0, server.log()
    assert_gone(server, everyone)
    return fired


def try_stop(
    house: ServerPool, points: FailpointFile, failure: InjectedFailure | None, look: Callable[[], None] = lambda: None
) -> bool:
    """Stop a server whose victim was loaded by hand: it exits with 0 and forgets that, or the failure kills it."""
    server = house.server()
    with removed(server):
        server.await_ready()
        stage = Stage(server, points)
        stage.up()
        everyone = server_processes(server)
        look()
        if failure is not None:
            points.order(failure.order, failure.spot, failure.nth)
        code = server.stop()
        fired = points.disarm()
        if code < 0:
            assert failure is not None, server.log()
            assert failure.ends_keeper, server.log()
            await_gone(everyone.processes)
            _goes_on(stage)
        else:
            assert code == 0, server.log()
            assert not stage.is_wanted()
        assert_gone(server, everyone)
        return fired


def _goes_on(stage: Stage) -> None:
    """Start again after the kill and check the desired state."""
    stage.server.start_again()
    stage.server.await_ready()
    converge(stage)
    assert stage.server.stop() == 0, stage.server.log()
