from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.supervisor.capacity.admission import (
    Admit,
    Claim,
    ClaimState,
    Decision,
    MakeRoom,
    Pool,
    Refuse,
    WaitForMemory,
    decide,
)
from mmsup.supervisor.capacity.footprint import Need

USED, BOOKED, RETURNING = ClaimState.USED, ClaimState.BOOKED, ClaimState.RETURNING
BUDGET = Pool("host memory", "--memory-budget", 1000, is_configured=True)
DEFAULT = replace(BUDGET, is_configured=False)


def measured(needed: int, least: int | None = None) -> Need:
    return Need(needed, needed if least is None else least)


def guess(needed: int) -> Need:
    return Need(needed, needed, is_measured=False)


def holding(pool: Pool, used: int = 0, booked: int = 0, returning: int = 0, evictable: int = 0) -> Pool:
    claims = (Claim("a/1", used, USED), Claim("b/1", booked, BOOKED), Claim("c/1", returning, RETURNING))
    return replace(pool, claims=tuple(each for each in claims if each.claimed_bytes), evictable_bytes=evictable)


@pytest.mark.parametrize(
    ("pool", "need", "expected"),
    [
        (holding(BUDGET, used=600), measured(400), Admit),
        (holding(BUDGET, used=600), measured(401), Refuse),
        (holding(BUDGET, booked=600), measured(401), Refuse),
        (holding(BUDGET, used=600, returning=400), measured(400), WaitForMemory),
        (holding(BUDGET, used=601, returning=399), measured(400), Refuse),
        (holding(BUDGET, used=800, evictable=200), measured(400), MakeRoom),
        (holding(BUDGET, used=800, evictable=199), measured(400), Refuse),
        (holding(BUDGET, used=700, returning=100, evictable=200), measured(400), MakeRoom),
        (holding(BUDGET, used=600), guess(401), Admit),
        (holding(BUDGET, used=999), guess(401), Admit),
        (holding(BUDGET, used=1000), guess(1), Refuse),
        (holding(BUDGET, used=600, returning=400), guess(400), WaitForMemory),
        (holding(BUDGET, used=800, evictable=200), guess(400), MakeRoom),
        (holding(BUDGET, used=800, evictable=200), guess(4000), MakeRoom),
        (holding(BUDGET, used=800, returning=200), guess(4000), WaitForMemory),
        (holding(DEFAULT, used=5000), measured(400), Admit),
        (holding(DEFAULT, used=5000), guess(400), Admit),
        (replace(DEFAULT, free_bytes=399), measured(400), Refuse),
        (replace(DEFAULT, free_bytes=399), measured(400, least=399), Admit),
        (replace(DEFAULT, free_bytes=399), guess(400), Admit),
        (replace(holding(DEFAULT, returning=1), free_bytes=399), measured(400), WaitForMemory),
        (replace(holding(DEFAULT, used=1, evictable=1), free_bytes=399), measured(400), MakeRoom),
    ],
)
def test_a_load_is_admitted_waits_has_room_made_or_is_refused(pool: Pool, need: Need, expected: type[Decision]) -> None:
    assert type(decide([(pool, need)])) is expected


def test_what_does_not_fit_by_a_guess_or_a_default_budget_is_admitted_with_a_warning() -> None:
    for pool, need in ((BUDGET, guess(1001)), (DEFAULT, measured(1001))):
        decision = decide([(pool, need)])
        assert isinstance(decision, Admit)
        assert decision.warning is not None
        assert decision.warning.missing_bytes == 1
    assert decide([(BUDGET, measured(1000))]) == Admit()


def test_a_refusal_says_what_is_needed_what_is_in_use_by_whom_and_what_to_set() -> None:
    pool = replace(BUDGET, budget_bytes=1 << 30, claims=(Claim("bert/1", 700 << 20), Claim("bert/1", 100 << 20)))
    decision = decide([(pool, measured(512 << 20))])
    assert isinstance(decision, Refuse)
    assert decision.shortage.text == ("it needs 512MiB of host memory, and 800MiB of the budget of 1GiB are in use")
    assert decision.shortage.advice == (
        "most by bert/1 800MiB; unload a model that is not needed, or raise --memory-budget"
    )
    fields = decision.shortage.fields()
    assert (fields["missing_bytes"], fields["held_by"]) == (288 << 20, {"bert/1": 800 << 20})


def test_what_needs_more_than_the_whole_budget_is_not_advised_to_unload_others() -> None:
    decision = decide([(replace(BUDGET, budget_bytes=1 << 20, claims=(Claim("bert/1", 5),)), measured(2 << 20))])
    assert isinstance(decision, Refuse)
    assert decision.shortage.is_beyond_budget
    assert decision.shortage.text == "it needs 2MiB of host memory, more than the whole budget of 1MiB"
    assert decision.shortage.advice == "raise --memory-budget"


@pytest.mark.parametrize(
    ("pool", "need"),
    [
        (replace(BUDGET, claims=(Claim("bert/1", 1000),)), guess(1001)),
        (replace(BUDGET, claims=(Claim("bert/1", 1),)), measured(1000)),
        (replace(BUDGET, free_bytes=999), measured(1001)),
    ],
)
def test_what_may_fit_once_others_have_left_is_not_refused_for_ever(pool: Pool, need: Need) -> None:
    decision = decide([(pool, need)])
    assert isinstance(decision, Refuse)
    assert not decision.shortage.is_beyond_budget


def test_memory_that_is_gone_is_named_as_such_and_no_option_is_advised() -> None:
    decision = decide([(replace(DEFAULT, free_bytes=1 << 20), measured(2 << 20))])
    assert isinstance(decision, Refuse)
    assert decision.shortage.text == "it needs 2MiB of host memory, and 1MiB are free"
    assert "--memory-budget" not in decision.shortage.advice


def test_of_several_pools_the_one_that_is_shortest_decides() -> None:
    gpu = replace(BUDGET, name="cuda:0")
    assert decide([(BUDGET, measured(1)), (gpu, measured(1))]) == Admit()
    refused = decide([(holding(BUDGET, used=600, returning=400), measured(400)), (gpu, measured(1001))])
    assert isinstance(refused, Refuse)
    assert refused.shortage.pool == "cuda:0"
    room = decide([(holding(BUDGET, used=900, evictable=200), measured(200)), (gpu, measured(1))])
    assert isinstance(room, MakeRoom)
    assert room.shortage.missing_bytes == 100
    assert decide([(holding(BUDGET, used=1000), Need(0)), (gpu, measured(1))]) == Admit()


RANK = {Admit: 0, WaitForMemory: 1, MakeRoom: 2, Refuse: 3}


def random_pool(rng: random.Random) -> Pool:
    used = rng.randrange(1500)
    free = rng.choice((None, rng.randrange(2000)))
    pool = replace(rng.choice((BUDGET, DEFAULT)), free_bytes=free)
    return holding(pool, used, rng.randrange(300), rng.randrange(300), rng.randrange(used + 1))


@pytest.mark.parametrize("seed", range(20))
def test_needing_less_or_having_more_never_makes_a_decision_worse(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        pool, needed = random_pool(rng), rng.randrange(1, 1200)
        for of in (measured, guess):
            decision = decide([(pool, of(needed))])
            assert RANK[type(decide([(pool, of(max(needed - 1, 1)))]))] <= RANK[type(decision)]
            larger = replace(pool, budget_bytes=pool.budget_bytes + 1)
            assert RANK[type(decide([(larger, of(needed))]))] <= RANK[type(decision)]
            if isinstance(decision, Refuse) and not pool.is_configured:
                assert pool.free_bytes is not None
                assert needed > pool.free_bytes


@pytest.mark.parametrize("seed", range(20))
def test_measured_loads_one_after_the_other_stay_within_a_configured_budget(seed: int) -> None:
    """Models come and go; whoever waits is asked again when somebody has gone, and is never refused what is free."""
    rng = random.Random(seed)
    held: dict[str, int] = {}
    leaving: dict[str, int] = {}
    for turn in range(300):
        claims = [Claim(name, size) for name, size in held.items()]
        claims += [Claim(name, size, RETURNING) for name, size in leaving.items()]
        pool, size = replace(BUDGET, claims=tuple(claims)), rng.randrange(1, 400)
        decision = decide([(pool, measured(size))])
        free = 1000 - sum(held.values()) - sum(leaving.values())
        assert isinstance(decision, Admit) is (size <= free)
        if isinstance(decision, Admit):
            held[f"m{turn}"] = size
        elif isinstance(decision, WaitForMemory):
            assert size <= free + sum(leaving.values())
            leaving.clear()
            assert isinstance(decide([(replace(BUDGET, claims=tuple(claims[: len(held)])), measured(size))]), Admit)
        if held and rng.random() < 0.4:
            name = rng.choice(list(held))
            leaving[name] = held.pop(name)
        assert sum(held.values()) + sum(leaving.values()) <= 1000
