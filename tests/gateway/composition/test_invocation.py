"""Which worker a call may go to, so that none waits for itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, cast

import pytest

from mmsup.gateway.composition.invocation import DEPTH_LIMIT, OPEN_LIMIT, Invocation, Invocations, reached
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.errors import ModelError, ServerError


@dataclass(eq=False)
class Link:
    pid: int
    held: int = 0
    closed: bool = False

    def load(self) -> int:
        return self.held

    @property
    def process(self) -> Link:
        return self


@dataclass
class Request:
    link: Link
    in_flight: Any = None


def link(pid: int, held: int = 0) -> WorkerLink:
    return cast("WorkerLink", Link(pid, held))


def waiting(invocations: Invocations, caller: WorkerLink, called: WorkerLink, *chain: str) -> Invocation:
    """`caller` waits for what runs at `called`."""
    made = Invocation(chain, caller)
    made.request = cast("Any", Request(cast("Any", called)))
    invocations.enter(made)
    return made


def test_a_call_goes_to_the_least_loaded_worker_that_does_not_wait_for_its_caller() -> None:
    first, second, third = link(1), link(2, held=5), link(3, held=1)
    call = Invocation(("a", "a"), first)
    assert Invocations().choose(call, [first, second, third]) is third
    assert Invocations().choose(call, [first, second]) is second


def test_a_call_into_its_own_chain_is_refused_and_the_chain_is_named() -> None:
    invocations, a, b = Invocations(), link(1), link(2)
    waiting(invocations, a, b, "a", "b")
    with pytest.raises(ModelError, match=r"'a' would wait for itself \(a -> b -> a\): its only worker") as caught:
        invocations.choose(Invocation(("a", "b", "a"), b), [a])
    assert caught.value.code == "call_loop"


def test_two_chains_that_would_wait_for_each_other_are_found() -> None:
    invocations, a, b = Invocations(), link(1), link(2)
    waiting(invocations, a, b, "a", "b")  # of one client; and for another one b now calls a
    with pytest.raises(ModelError, match="cannot be called by 'b' now"):
        invocations.choose(Invocation(("b", "a"), b), [a])


def test_models_in_one_process_do_not_wait_for_each_other() -> None:
    with pytest.raises(ModelError, match="take the models apart"):
        Invocations().choose(Invocation(("a", "b"), link(7)), [link(7)])


def test_a_step_of_an_ensemble_that_a_worker_called_may_not_run_in_that_worker() -> None:
    invocations, a = Invocations(), link(1)
    ensemble = Invocation(("a", "e"), a)
    invocations.enter(ensemble)
    step = ensemble.step("a")
    assert step.chain == ("a", "e", "a")
    with pytest.raises(ModelError, match="would wait for itself"):
        invocations.choose(step, [a])


def test_a_worker_is_free_again_when_the_call_has_ended_or_its_link_has() -> None:
    invocations, a, b = Invocations(), link(1), link(2)
    call = waiting(invocations, a, b, "a", "b")
    invocations.leave(call)
    assert invocations.choose(Invocation(("b", "a"), b), [a]) is a
    waiting(invocations, a, b, "a", "b")
    cast("Any", b).closed = True
    assert invocations.choose(Invocation(("c", "a"), link(3)), [a]) is a


def test_without_a_link_that_is_open_there_is_nothing_to_choose() -> None:
    closed = link(1)
    cast("Any", closed).closed = True
    assert Invocations().choose(Invocation(("a", "b"), link(2)), [closed]) is None


def test_depth_and_number_are_bounded() -> None:
    invocations = Invocations()
    with pytest.raises(ModelError, match=f"{DEPTH_LIMIT + 1} deep"):
        invocations.enter(Invocation(("m",) * (DEPTH_LIMIT + 1), None))
    for _ in range(OPEN_LIMIT):
        invocations.enter(Invocation(("m",) * DEPTH_LIMIT, None))
    with pytest.raises(ServerError, match="Exceeds maximum queue size"):
        invocations.enter(Invocation(("m",), None))


def test_no_walk_of_calls_makes_a_circle() -> None:
    rng = random.Random(4)
    for _ in range(200):
        invocations, links = Invocations(), [link(number) for number in range(5)]
        for _ in range(20):
            caller, candidates = rng.choice(links), rng.sample(links, 2)
            try:
                chosen = invocations.choose(Invocation(("a", "b"), caller), candidates)
            except ModelError:
                continue
            assert chosen is not None
            waiting(invocations, caller, chosen, "a", "b")
            waits = invocations._waits()
            assert all(own not in reached(each, waits) for own in waits for each in waits[own])
