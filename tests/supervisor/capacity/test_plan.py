from __future__ import annotations

import random
from dataclasses import replace

import pytest

from mmsup.supervisor.capacity.admission import Pool
from mmsup.supervisor.capacity.footprint import NO_NEED, Need
from mmsup.supervisor.capacity.plan import ModelUse, Placement, PlannedModel, pinned_misfits, plan
from mmsup.supervisor.capacity.victims import Candidate, choose

HOST = Pool("host memory", "--memory-budget", 100, is_configured=True)
GPUS = (replace(HOST, name="cuda:0", budget_bytes=50), replace(HOST, name="cuda:1", budget_bytes=80))


def model(name: str, size: int, priority: int = 50, **others: object) -> PlannedModel:
    return replace(PlannedModel(name, "1", priority, Need(size, size)), **others)  # type: ignore[arg-type]  # by name


def placed(placements: list[Placement]) -> dict[str, object]:
    """Of each model: where it fits, who goes for it, or why nothing helps."""
    return {each.model.name: each.why_not or each.evicts or each.device or "fits" for each in placements}


def test_models_fit_in_the_order_of_loading_until_the_budget_is_used_up() -> None:
    found = plan([model("c", 30), model("b", 50), model("a", 50), model("z", 40, priority=1)], HOST, ())
    assert [each.model.name for each in found] == ["z", "a", "b", "c"]
    assert placed(found) == {"z": "fits", "a": "fits", "b": ("a/1",), "c": ("a/1",)}


def test_lower_classes_go_first_and_of_equals_the_one_that_comes_back_soonest_for_what_it_holds() -> None:
    loaded = ModelUse(is_loaded=True)
    residents = [
        model("low", 30, priority=60, load_s=99.0, use=loaded),
        model("slow", 30, load_s=9.0, use=loaded),
        model("quick", 40, load_s=1.0, use=loaded),
    ]
    assert placed(plan([*residents, model("x", 30)], HOST, ()))["x"] == ("low/1",)
    assert placed(plan([*residents, model("x", 60)], HOST, ()))["x"] == ("low/1", "quick/1")


def test_nobody_was_asked_for_a_minute_so_a_class_protects_nothing_without_a_server() -> None:
    residents = [model("low", 30, priority=60, load_s=99.0), model("quick", 60, load_s=1.0)]
    assert placed(plan([*residents, model("x", 30, priority=90)], HOST, ()))["x"] == ("quick/1",)


def test_beside_a_server_the_models_that_it_has_loaded_are_there_first_and_go_as_it_would_choose() -> None:
    used = ModelUse(is_loaded=True, use_rate=0.5, idle_s=1.0)
    rare = replace(used, use_rate=0.01)
    models = [
        model("asleep", 30, use=ModelUse(use_rate=0.0)),
        model("rare", 50, use=rare),
        model("used", 50, use=used),
        model("less", 30, priority=90, use=ModelUse(use_rate=0.0)),
    ]
    found = placed(plan(models, HOST, ()))
    assert found == {
        "rare": "fits",
        "used": "fits",
        "asleep": ("rare/1",),
        "less": "it needs 30B of host memory, and 100B of the budget of 100B are in use",  # both are of a higher class
    }


def test_who_goes_in_the_plan_is_who_the_server_chooses() -> None:
    rng = random.Random(1)
    for _ in range(200):
        models = [
            model(
                f"m{number}",
                rng.randrange(10, 40),
                rng.randrange(1, 4),
                load_s=rng.random(),
                use=ModelUse(is_loaded=True, use_rate=rng.random(), idle_s=rng.choice((1.0, 99.0))),
            )
            for number in range(5)
        ]
        x = model("x", rng.randrange(10, 60), rng.randrange(1, 4), use=ModelUse(use_rate=0.0))
        found = plan([*models, x], HOST, ())
        there, placement = [each.model for each in found if each.fits and each.model.name != "x"], found[-1]
        missing = sum(each.host.settled_bytes for each in there) + x.host.needed_bytes - 100
        candidates = [
            Candidate(each.holder, each.priority, each.host.settled_bytes, use.idle_s, use.use_rate, each.load_s)
            for each in there
            for use in [each.use]
        ]
        chosen = choose(candidates, missing, x.priority) if missing > 0 else []
        if sum(each.held_bytes for each in chosen) >= missing:
            assert sorted(placement.evicts) == sorted(each.name for each in chosen)
        else:
            assert placement.why_not


def test_pinned_models_never_go() -> None:
    others = [model("p", 40, is_pinned=True), model("q", 60, is_pinned=True)]
    found = plan([*others, model("x", 10, priority=1)], HOST, ())
    assert placed(found)["x"] == "it needs 10B of host memory, and 100B of the budget of 100B are in use"
    assert pinned_misfits(found) == []


def test_pinned_models_are_placed_first_and_those_without_room_are_named() -> None:
    found = plan([model("a", 90, priority=1), model("p", 60, is_pinned=True), model("q", 60, is_pinned=True)], HOST, ())
    assert [each.model.name for each in found] == ["p", "q", "a"]
    assert [each.model.name for each in pinned_misfits(found)] == ["q"]


def test_a_guess_is_taken_at_its_word_and_residents_hold_what_they_settle_at() -> None:
    assert "guessed" not in placed(plan([model("a", 0, host=Need(101, 101, is_measured=False))], HOST, ()))["a"]  # type: ignore[operator]
    peaks = [model("a", 0, host=Need(90, 30)), model("b", 0, host=Need(70, 30)), model("c", 0, host=Need(50, 30))]
    assert placed(plan(peaks, HOST, ())) == {"a": "fits", "b": "fits", "c": ("a/1",)}


def test_a_model_for_any_gpu_takes_the_one_with_most_room_and_one_that_is_bound_its_own() -> None:
    def on(name: str, device: str, size: int) -> PlannedModel:
        return model(name, 1, device=device, gpu=Need(size, size))

    found = plan([on("a", "cuda", 50), on("b", "cuda", 40), on("c", "cuda:1", 40)], HOST, GPUS)
    assert placed(found) == {"a": "cuda:1", "b": "cuda:0", "c": ("a/1",)}
    alone = plan([on("a", "cuda:7", 500)], HOST, GPUS)
    assert placed(alone) == {"a": "fits"}  # nobody knows that device, so only the host counts
    assert model("a", 1).gpu is NO_NEED


@pytest.mark.parametrize("seed", range(20))
def test_what_fits_stays_within_each_budget_and_evicting_as_said_makes_room(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        models = [
            PlannedModel(
                f"m{number}",
                "1",
                rng.randrange(1, 4),
                Need(size := rng.randrange(1, 60), rng.randrange(1, size + 1)),
                rng.choice(("", "cuda", "cuda:0", "cuda:1")),
                Need(held := rng.randrange(1, 40), rng.randrange(1, held + 1)),
                rng.random(),
                rng.random() < 0.2,
            )
            for number in range(rng.randrange(1, 12))
        ]
        found = plan(models, HOST, GPUS)
        assert sorted(each.model.name for each in found) == sorted(each.name for each in models)
        residents: list[Placement] = []
        for each in found:
            stay = [other for other in residents if other.model.holder not in each.evicts]
            gone = [other.model for other in residents if other.model.holder in each.evicts]
            assert len(gone) == len(each.evicts)
            assert not any(other.is_pinned for other in gone)
            if not each.why_not:
                assert sum(other.model.host.settled_bytes for other in stay) + each.model.host.needed_bytes <= 100
                for pool in GPUS:
                    on_it = sum(other.model.gpu.settled_bytes for other in stay if other.device == pool.name)
                    if each.device == pool.name:
                        assert on_it + each.model.gpu.needed_bytes <= pool.budget_bytes
            if each.fits:
                residents.append(each)
