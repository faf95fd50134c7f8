"""Each operation with each of its failpoints firing at the first hit, the second, and so on, until it passes.

A run without `--all-points` takes a sample by seed, spread over all points, for `--points-seconds`; with it all are
tried, which takes hours, and what is found does not end it; `--points-of` names the one operation to try. All of them
print what was tried, how long it took, and which points were come by.
"""

from __future__ import annotations

import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from harness import combination, failpoint_trial
from harness.failpoint_file import FailpointFile, FailpointSite, all_sites
from harness.failpoint_trial import InjectedFailure, ServerPool
from harness.operations import BYSTANDER, OPERATIONS, Operation, repository
from mmsup.ipc.failpoints import FailpointAction

pytestmark = pytest.mark.slow
ORDERS = {FailpointAction.KILL: 6, FailpointAction.RAISE: 6, FailpointAction.DELAY: 1}
"""Weights of the actions in a sample; a delay shows least."""

FELL = (
    (
        "upgrade",
        InjectedFailure(FailpointAction.KILL, FailpointSite("brain", "brain.gateway_said"), 1),
    ),  # the next controller's gateway had its name
    (
        "poison",
        InjectedFailure(FailpointAction.KILL, FailpointSite("brain", "brain.linked"), 1),
    ),  # a death in service passed for one in the load
    (
        "unload a group",
        InjectedFailure(FailpointAction.KILL, FailpointSite("brain", "brain.member_left"), 1),
    ),  # the next controller waited for a member that had left, and then ended the process for it
    (
        "break a group",
        InjectedFailure(FailpointAction.RAISE, FailpointSite("brain", "ipc.receive_rights"), 2),
    ),  # the members of a process whose descriptors found no room waited for it for ever
)
"""Failures that were not survived once."""

Report = Callable[[str], None]
Chance = tuple[str, FailpointSite, FailpointAction, int]
"""Operation, failpoint, action, and the number of hits in a run without a failure."""


@dataclass
class TrialLoop:
    """State shared by all trials of this file."""

    points: FailpointFile
    pool: ServerPool
    everything: bool
    budget_s: float
    """Time for the sample of operations on a running server; starts and ends get a quarter of it each. A trial that has
    begun is completed."""
    rng: random.Random
    report: Report
    operations: list[Operation]
    tried: Counter[str] = field(default_factory=Counter)
    found: list[Exception] = field(default_factory=list)

    def count(self, failure: InjectedFailure) -> None:
        self.tried[failure.order.name.lower()] += 1

    def judge(self) -> None:
        """Raise what the trials have found."""
        found, self.found = self.found, []
        if found:
            raise ExceptionGroup("points that are not survived", found)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[TrialLoop]:
    folder = tmp_path_factory.mktemp("points")
    made = FailpointFile(folder / "range")
    everything = bool(request.config.getoption("--all-points"))
    seed = int(request.config.getoption("--points-seed") or random.SystemRandom().getrandbits(32))
    lines: list[str] = request.config.stash.setdefault(failpoint_trial.LINES, [])
    house = ServerPool(repository(folder / "models"), made)
    only = request.config.getoption("--points-of")
    operations = [each for each in OPERATIONS if only in ("", each.name)]
    budget_s = request.config.getoption("--points-seconds")
    loop = TrialLoop(made, house, everything, budget_s, random.Random(seed), lines.append, operations)
    yield loop
    house.close()
    come_by = [each for each, hits in made.hits().items() if hits]
    tried = ", ".join(f"{count} {what}" for what, count in sorted(loop.tried.items()))
    lines.append(f"seed {seed}: {loop.tried.total()} failures ({tried})")
    lines.append(f"points come by: {len(come_by)} of {len(list(all_sites()))}")


def failures_of(hits: dict[FailpointSite, int]) -> list[tuple[FailpointSite, FailpointAction, int]]:
    """All failpoints and actions of an operation, with the number of hits."""
    return [
        (spot, order, count)
        for spot, count in sorted(hits.items())
        for order in ORDERS
        if order is not FailpointAction.RAISE or spot.can_raise
    ]


@pytest.mark.fault("F30")
def test_an_operation_in_which_one_point_fails_has_one_outcome_and_leaves_all_well(loop: TrialLoop) -> None:
    known = {operation.name: failpoint_trial.hits_of(loop.pool.stage(), operation) for operation in loop.operations}
    if loop.everything:
        _try_all(loop, known)
        loop.judge()
    else:
        _sample(loop, known)


@pytest.mark.fault("F30")
def test_what_was_once_not_survived_is(loop: TrialLoop) -> None:
    for operation in loop.operations:
        for failure in [each for name, each in FELL if name == operation.name]:
            assert _attempt(loop, operation, failure, failure.nth)


def _try_all(loop: TrialLoop, known: dict[str, dict[FailpointSite, int]]) -> None:
    """Fail the first hit of each failpoint in each operation, then the second, and so on, until all pass."""
    by_name = {operation.name: operation for operation in loop.operations}
    left: list[Chance] = [(name, *each) for name, hits in known.items() for each in failures_of(hits)]
    nth, trials, took_s = 0, Counter[str](), Counter[str]()
    while left:
        nth += 1
        now, left = left, []
        for chance in now:
            name, spot, order, count = chance
            began_s = time.monotonic()
            fired = _attempt(loop, by_name[name], InjectedFailure(order, spot, nth), count)
            trials[name] += 1
            took_s[name] += int(1000 * (time.monotonic() - began_s))
            # That an operation passes is tried with the order that changes nothing before.
            if fired and nth < count + (order is FailpointAction.DELAY):
                left.append(chance)
    for name, ms in took_s.items():
        loop.report(f"{name}: {len(known[name])} points, {trials[name]} trials in {ms / 1e3:.0f} s")


def _sample(loop: TrialLoop, known: dict[str, dict[FailpointSite, int]]) -> None:
    """Try each failpoint once, with a random operation, action and hit, until the time is up."""
    by_name = {operation.name: operation for operation in loop.operations}
    chances: list[Chance] = [(name, *each) for name, hits in known.items() for each in failures_of(hits)]
    # An upgrade takes as long as five others: it is drawn for what it alone comes by.
    others = {each[1] for each in chances if not by_name[each[0]].renews}
    chances = [each for each in chances if not by_name[each[0]].renews or each[1] not in others]
    end_s = time.monotonic() + loop.budget_s
    todo = [
        _drawn(loop, [each for each in chances if each[1] == spot]) for spot in sorted({each[1] for each in chances})
    ]
    loop.rng.shuffle(todo)
    count_of_all = len(todo)
    while todo and time.monotonic() < end_s:
        name, spot, order, count = todo.pop()
        _attempt(loop, by_name[name], InjectedFailure(order, spot, loop.rng.randint(1, count)), count)
    loop.report(f"sample: {count_of_all - len(todo)} of {count_of_all} points, one failure each of {len(chances)}")


def _drawn(loop: TrialLoop, chances: list[Chance]) -> Chance:
    return loop.rng.choices(chances, [ORDERS[each[2]] for each in chances])[0]


def _attempt(loop: TrialLoop, operation: Operation, failure: InjectedFailure, count: int) -> bool:
    try:
        fired = failpoint_trial.attempt(loop.pool, operation, failure, count)
    except BaseException as error:
        fired = loop.points.disarm()
        loop.pool.abandon()
        if not _goes_on(loop, f"{operation.name}: {failure}", error):
            raise
    if fired:
        loop.count(failure)
    return fired


def _goes_on(loop: TrialLoop, what: str, error: BaseException) -> bool:
    """Whether to continue after a failure: a sample stops, a run over all failpoints reports at the end."""
    error.add_note(what)
    if not loop.everything or not isinstance(error, Exception):
        return False
    traceback.print_exception(error)
    loop.found.append(error)
    return True


@pytest.mark.fault("F30")
def test_a_start_in_which_one_point_fails_comes_up_or_says_why_not(loop: TrialLoop) -> None:
    before = loop.points.hits()
    nothing = InjectedFailure(FailpointAction.OFF, next(all_sites()), 1)
    assert not failpoint_trial.try_start(loop.pool, loop.points, nothing)
    hits = _since(loop, before)
    _try(loop, hits, "start", lambda failure: failpoint_trial.try_start(loop.pool, loop.points, failure))


@pytest.mark.fault("F30")
def test_a_start_whose_first_worker_no_controller_remembers_blames_no_model(loop: TrialLoop) -> None:
    assert failpoint_trial.try_start(
        loop.pool, loop.points, InjectedFailure(FailpointAction.KILL, FailpointSite("brain", "brain.spawn_said"), 1)
    )


@pytest.mark.fault("F30")
def test_an_end_in_which_one_point_fails_is_an_end(loop: TrialLoop) -> None:
    before: dict[FailpointSite, int] = {}
    failpoint_trial.try_stop(loop.pool, loop.points, None, lambda: before.update(loop.points.hits()))
    hits = _since(loop, before)
    _try(loop, hits, "stop", lambda failure: failpoint_trial.try_stop(loop.pool, loop.points, failure))


def _since(loop: TrialLoop, before: dict[FailpointSite, int]) -> dict[FailpointSite, int]:
    return {spot: count - before[spot] for spot, count in loop.points.hits().items() if count > before[spot]}


def _try(loop: TrialLoop, hits: dict[FailpointSite, int], name: str, act: Callable[[InjectedFailure], bool]) -> None:
    chances = failures_of(hits)
    began_s = time.monotonic()
    end_s = float("inf") if loop.everything else began_s + loop.budget_s / 4
    loop.rng.shuffle(chances)
    done = 0
    for spot, order, count in chances:
        for nth in range(1, count + 1) if loop.everything else [loop.rng.randint(1, count)]:
            failure = InjectedFailure(order, spot, nth)
            try:
                if act(failure):
                    loop.count(failure)
            except BaseException as error:
                loop.points.disarm()
                if not _goes_on(loop, f"{name}: {failure}", error):
                    raise
        done += 1
        if time.monotonic() > end_s:
            break
    took_s = time.monotonic() - began_s
    loop.report(f"{name}: {done} of {len(chances)} pairs of a point and a failure in {took_s:.0f} s")
    loop.judge()


def test_no_worker_gets_the_range(loop: TrialLoop) -> None:
    stage = loop.pool.stage()
    for pid in stage.server.pids(BYSTANDER):
        assert not any(each.startswith("points=") for each in psutil.Process(pid).cmdline())
        assert str(loop.points.path) not in {
            os.path.realpath(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
        }


def test_every_point_is_come_by_in_some_operation(loop: TrialLoop) -> None:
    if loop.operations != list(OPERATIONS):
        pytest.skip("one operation alone does not come by all")
    missed = {str(each) for each, hits in loop.points.hits().items() if not hits}
    if combination.is_zeromq():
        missed -= {"ipc.pair_receive in gateway"}  # replies come by ZeroMQ
    assert not missed
