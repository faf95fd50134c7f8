"""One trial of the N-th operation loop: a failure is ordered, an operation is asked for, and then all must be well.

Well is: whoever asked has exactly one outcome; what is wanted (on the disk) is what is true; the bystander's calls were
all answered, or cut where his gateway died, and none refused; what is on the disk can be read; nothing is left behind.
An upgrade may renew every process; after the first hit of each point another one passes.
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
from mmsup.supervisor.cli.control_client import NoServer, ServerRefused

FLAGS = ("--model-control-mode", "explicit", "--load-model", BYSTANDER)
MAX_RESTARTS = 3
"""Of one server's brain or gateway: the next one would come later, by the curve of the server's own parts."""
LINES = pytest.StashKey[list[str]]()
"""What the loop has to say at the end of the session."""
PACE_S = 0.01
"""Between two calls of the bystander."""
LATE_S = 1.0
"""How long a hit may come after its operation's outcome."""


@dataclass(frozen=True)
class InjectedFailure:
    """What is ordered."""

    order: FailpointAction
    spot: FailpointSite
    nth: int

    @property
    def ends_keeper(self) -> bool:
        """A kill of the keeper itself, not of the child that it is about to become."""
        return self.order is FailpointAction.KILL and self.spot.role == "keeper" and not self.ends_child

    @property
    def ends_child(self) -> bool:
        """A kill of what the keeper has just forked."""
        return self.order is FailpointAction.KILL and self.spot.name in ("keeper.child_group", "keeper.child_exec")

    def __str__(self) -> str:
        return f"{self.order.name.lower()} at hit {self.nth} of {self.spot}"


class ServerPool:
    """Servers, one after another, all armed by one range."""

    def __init__(self, repository: Path, points: FailpointFile) -> None:
        self._repository = repository
        self._points = points
        self._stage: Stage | None = None
        self._falls: Counter[str] = Counter()

    def server(self) -> Server:
        """A server that is being started."""
        env = {"MMSUP_FAULT_POINTS": str(self._points.path)}
        return Server(self._repository, *FLAGS, env=env, store=FdStoreDouble("http", "metrics"))

    def stage(self) -> Stage:
        """A server that is ready, the victim down, whose processes come back at once if they die."""
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
        """Count what falls in the block."""
        before = self._fallen(stage)
        yield
        self._falls.update(self._fallen(stage) - before)

    @staticmethod
    def _fallen(stage: Stage) -> Counter[str]:
        """Whoever was followed on purpose has not fallen."""
        gateways = len(stage.server.events("gateway_exit"))
        return Counter(brain=stage.server.log().count('"brain_exit"'), gateway=gateways)

    def close(self) -> None:
        """An orderly end, that leaves nothing."""
        stage, self._stage = self._stage, None
        self._falls.clear()
        if stage is not None:
            with removed(stage.server):
                everyone = server_processes(stage.server)
                assert stage.server.stop() == 0, stage.server.log()
                assert_gone(stage.server, everyone)

    def abandon(self) -> None:
        """A trial has failed: its server proves nothing any more."""
        stage, self._stage = self._stage, None
        self._falls.clear()
        if stage is not None:
            print(stage.server.log()[-6000:])
            stage.server.remove()


@contextlib.contextmanager
def removed(server: Server) -> Iterator[None]:
    """Whatever happens, the server is gone afterwards."""
    try:
        yield
    finally:
        server.remove()


def hits_of(stage: Stage, operation: Operation) -> dict[FailpointSite, int]:
    """How often each point is come by in one run of the operation in which nothing fails."""
    operation.prepare(stage)
    before = stage.points.hits()
    outcome = operation.run(stage)
    assert outcome.right, outcome
    settle(stage)
    hits = {spot: count - before[spot] for spot, count in stage.points.hits().items() if count > before[spot]}
    stage.down()
    return hits


def attempt(house: ServerPool, operation: Operation, failure: InjectedFailure, expected: int = 0) -> bool:
    """One trial; whether the failure came to pass. `expected`: hits that a run without a failure has."""
    stage = house.stage()
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
    """Let a gateway, which may be a new one, have what it makes at its first large request and keeps."""
    client = Http(stage.server.address())
    assert client.infer(BYSTANDER, x=("FP32", [LARGE], [1.0] * LARGE))[0] == 200
    client.close()


def _fired(stage: Stage, is_expected: bool) -> bool:
    """Whether it has happened; what comes after the outcome is waited for, if it comes at all."""
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
    """Every file that is written as a whole is one."""
    for path in stage.server.state_dir.rglob("*.json"):
        json.loads(path.read_bytes())


def settle(stage: Stage) -> None:
    """Returns when what is true is what is wanted."""
    if stage.is_wanted():
        eventually(stage.is_up, "the victim is up")
    else:
        eventually(stage.is_down, "the victim is down")


def converge(stage: Stage) -> None:
    """The same; a model that is wanted answers then, and right."""
    settle(stage)
    if stage.is_wanted():
        outcome = infer(stage, 3)
        assert outcome.right, outcome
    client = Http(stage.server.address())
    status, reply = client.infer(BYSTANDER, x=("FP32", [1], [1.0]))
    client.close()
    assert status == 200, reply


def _without_keeper(house: ServerPool, stage: Stage, operation: Operation, failure: InjectedFailure) -> bool:
    """The keeper dies, and everything with it; the same command begins again with what was wanted."""
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
    """Who connects while there is no keeper is not refused: the service manager holds the listener."""
    with socket.create_connection(server.address()) as waiting:
        waiting.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        yield
        waiting.settimeout(10)
        assert waiting.recv(4096).startswith(b"HTTP/1.1 200"), "nobody has served who waited"


def await_gone(processes: list[psutil.Process]) -> None:
    """What a keeper leaves dies with it."""
    _, alive = psutil.wait_procs(processes[1:], timeout=10)
    assert not alive, "somebody survives the keeper"


# The two operations that begin or end with no server.


def try_start(house: ServerPool, points: FailpointFile, failure: InjectedFailure) -> bool:
    """A server starts: it comes up, or says why not and leaves nothing; the same command then works."""
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
    """It is part of the start; a gateway that fails in it cuts it."""
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
    status, reply = client.infer(BYSTANDER, x=("FP32", [1], [1.0]))
    client.close()
    assert status == 200, reply
    assert server.store is not None
    assert not server.store.has_stale
    everyone = server_processes(server)
    assert server.stop() == 0, server.log()
    assert_gone(server, everyone)
    return fired


def try_stop(
    house: ServerPool, points: FailpointFile, failure: InjectedFailure | None, look: Callable[[], None] = lambda: None
) -> bool:
    """A server is told to stop, with the victim loaded by hand: it ends with 0 and forgets that, or it is cut off."""
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
    """After the cut: what was wanted, if it was not forgotten yet."""
    stage.server.start_again()
    stage.server.await_ready()
    converge(stage)
    assert stage.server.stop() == 0, stage.server.log()
