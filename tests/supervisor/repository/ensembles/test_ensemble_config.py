"""`ensemble_scheduling`: what is read, and how each mistake in it is told."""

from __future__ import annotations

from typing import Any

import pytest

from mmsup.ipc.specs import EnsembleStep, ModelSpec, TensorSpec, needed_steps, startable
from mmsup.supervisor.repository.ensembles.ensemble_config import ensemble_specs
from mmsup.supervisor.repository.ensembles.step_checks import step_faults

X, Y = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))
Step = tuple[str, dict[str, str], dict[str, str]]
CHAIN: list[Step] = [("one", {"a": "x"}, {"b": "m"}), ("two", {"a": "m"}, {"b": "y"})]


def read(steps: list[Step], **more: Any) -> tuple[tuple[ModelSpec, ...], list[str]]:  # fields of a step, or of the spec
    """The specs, and the errors."""
    given = [
        {"model_name": model, "model_version": "-1", "input_map": inputs, "output_map": outputs, **more.pop("step", {})}
        for model, inputs, outputs in steps
    ]
    fields = {"inputs": (X,), "outputs": (Y,)} | more
    specs, errors = ensemble_specs("e", "/m/e", ("1", "2"), {"ensemble_scheduling": {"step": given}}, fields)
    return specs, [str(each) for each in errors]


def test_each_version_of_an_ensemble_has_its_steps_and_no_worker() -> None:
    specs, errors = read(CHAIN)
    assert errors == []
    assert [(each.version, each.engine, each.instances) for each in specs] == [
        ("1", "ensemble", 0),
        ("2", "ensemble", 0),
    ]
    assert specs[0].steps[0] == EnsembleStep("one", "", {"a": "x"}, {"b": "m"})
    assert not specs[0].is_on_demand("on-demand")


@pytest.mark.parametrize(
    ("steps", "more", "words"),
    [
        ([], {}, "an ensemble has 1 to 64 steps"),
        ([("", {"a": "x"}, {"b": "y"})], {}, "model_name: is missing"),
        ([("one", {}, {"b": "y"})], {}, "input_map: is missing"),
        ([("one", {"a": "x"}, {})], {}, "output_map: is missing"),
        (CHAIN, {"step": {"model_version": 0}}, "0 is no version"),
        (CHAIN, {"step": {"model_namespace": "n"}}, "model_namespace: is not known here"),
        ([("e", {"a": "x"}, {"b": "y"})], {}, "names the ensemble itself"),
        ([("one", {"a": "z"}, {"b": "y"})], {}, "takes 'z', which is no input of the ensemble and no output of a step"),
        ([*CHAIN, ("three", {"a": "x"}, {"b": "m"})], {}, "tensor 'm' is made more than once"),
        ([("one", {"a": "x"}, {"b": "m"})], {}, "output: 'y' is made by no step"),
        (CHAIN, {"inputs": (X, TensorSpec("w", "FP32", (1,)))}, "input: 'w' is taken by no step"),
        (CHAIN, {"inputs": ()}, "input: is missing"),
        (
            [("one", {"a": "x", "c": "y"}, {"b": "m"}), ("two", {"a": "m"}, {"b": "y"})],
            {},
            "'one', 'two' wait for each other's outputs in a circle",
        ),
    ],
)
def test_what_is_wrong_with_the_steps_is_told(steps: list[Step], more: dict[str, Any], words: str) -> None:
    specs, errors = read(steps, **more)
    assert specs == ()
    assert any(words in each for each in errors), errors


def model(name: str, *, datatype: str = "FP32", shape: tuple[int, ...] = (-1,), **more: Any) -> ModelSpec:
    inputs = (TensorSpec("a", datatype, shape), *more.pop("beside", ()))
    spec = {"inputs": inputs, "outputs": (TensorSpec("b", "FP32", shape),)} | more
    return ModelSpec(name, "1", "", "model.py", "custom", "python", **spec)


@pytest.mark.parametrize(
    ("two", "words"),
    [
        (model("two"), ""),
        (ModelSpec("two", "1", "", "model.onnx", "ort", "onnxruntime_onnx"), ""),  # only its file knows
        (None, "model 'two' is in no repository"),
        (model("two", datatype="INT64"), "gets 'm' as its input 'a', which is FP32, where INT64 is expected"),
        (model("two", shape=(2, 2)), "gets 'm' as its input 'a', which has shape [-1], where [2, 2] is expected"),
        (model("two", shape=(4,)), ""),
        (model("two", beside=(TensorSpec("c", "FP32", (1,)),)), "needs 'c', which its input_map does not name"),
        (model("two", beside=(TensorSpec("c", "FP32", (1,), optional=True),)), ""),
        (model("two", inputs=(TensorSpec("q", "FP32", (-1,)),)), "has no input 'a'; it has 'q'"),
        (model("two", outputs=(TensorSpec("y", "FP32", (-1,)),)), "has no output 'b'; it has 'y'"),
        (model("two", decoupled=True), "decoupled"),
        (model("two", outputs=(TensorSpec("b", "INT8", (-1,)),)), "output: 'y' is INT8, where FP32 is expected"),
        (
            ModelSpec(
                "two", "1", "", "", "ensemble", "ensemble", steps=(EnsembleStep("e", "", {"x": "x"}, {"y": "y"}),)
            ),
            "is an ensemble that needs this one: e -> two -> e",
        ),
    ],
)
def test_a_step_that_does_not_fit_its_model_is_told(two: ModelSpec | None, words: str) -> None:
    (ensemble, _), _ = read(CHAIN)
    models = {"one": [model("one")], "e": [ensemble]} | ({"two": [two]} if two is not None else {})
    faults = [str(each) for each in step_faults(ensemble, models)]
    assert words in "; ".join(faults)
    assert bool(faults) is bool(words)


def test_an_ensemble_allows_no_more_rows_than_its_steps() -> None:
    (ensemble, _), _ = read(CHAIN, max_batch_size=8)
    models = {name: [model(name, max_batch_size=size)] for name, size in (("one", 8), ("two", 4))}
    (fault,) = step_faults(ensemble, models)
    assert "takes at most 4 rows (max_batch_size), and the ensemble allows 8" in str(fault)


def test_steps_start_when_their_inputs_are_there_and_only_those_that_are_needed() -> None:
    steps = [
        EnsembleStep("both", "", {"l": "p", "r": "q"}, {"s": "y"}),
        EnsembleStep("one", "", {"a": "x"}, {"b": "p"}),
        EnsembleStep("two", "", {"a": "x"}, {"b": "q"}),
    ]
    assert startable(steps, (), ("x",)) == [1, 2]
    assert startable(steps, (1, 2), ("x", "p")) == []
    assert startable(steps, (1, 2), ("x", "p", "q")) == [0]
    assert needed_steps(steps, ("y",)) == {0, 1, 2}
    assert needed_steps(steps, ("q",)) == {2}
