"""One run of an ensemble, with models that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import pytest

from mmsup.gateway.composition.ensemble_run import EnsembleRun
from mmsup.gateway.composition.inference import AskedInference, AskedTensor
from mmsup.gateway.composition.invocation import Invocation
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.errors import CallerError, MmsupError, WorkerError
from mmsup.ipc.specs import EnsembleStep

FORK = (
    EnsembleStep("one", "", {"a": "x"}, {"b": "p"}),
    EnsembleStep("two", "", {"a": "x"}, {"b": "q"}),
    EnsembleStep("both", "", {"l": "p", "r": "q"}, {"s": "y"}),
)
CHAIN = (EnsembleStep("one", "", {"a": "x"}, {"b": "m"}), EnsembleStep("two", "", {"a": "m"}, {"b": "y"}))


class Models:
    """Each model joins its inputs, and adds its name; `held` ones wait for their event."""

    def __init__(self) -> None:
        self.held: dict[str, asyncio.Event] = {}
        self.failing: dict[str, MmsupError] = {}
        self.story: list[str] = []
        self.asked: list[AskedInference] = []

    async def enter(self, stack: AsyncExitStack, asked: AskedInference, invocation: Invocation) -> list[OutputTensor]:
        name = invocation.model
        self.asked.append(asked)
        self.story.append(f"{name} starts")
        try:
            if name in self.held:
                await self.held[name].wait()
            if name in self.failing:
                raise self.failing[name]
        except asyncio.CancelledError:
            self.story.append(f"{name} is cancelled")
            raise
        stack.callback(self.story.append, f"{name} is freed")
        data = b"".join(bytes(each.data) for each in asked.inputs) + name.encode()
        return [OutputTensor(each, "UINT8", (len(data),), memoryview(data)) for each in asked.outputs]


def run(
    steps: Sequence[EnsembleStep],
    models: Models,
    outputs: Sequence[str] = ("y",),
    during: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    async def go() -> dict[str, bytes]:
        asked = AskedInference("", [AskedTensor("x", "UINT8", (1,), b"x")], outputs, {"k": 1}, 99, 5, "id")
        made = EnsembleRun(steps, models, Invocation(("e",), None), asked)
        task = asyncio.create_task(made.run())
        for _ in range(10):
            await asyncio.sleep(0)
        during()
        try:
            return {each.name: bytes(each.data) for each in await task}
        finally:
            await made.close()

    return asyncio.run(go())


def test_the_outputs_of_a_step_are_the_inputs_of_the_next() -> None:
    models = Models()
    assert run(CHAIN, models) == {"y": b"xonetwo"}
    assert models.story == ["one starts", "two starts", "one is freed", "two is freed"]
    assert [(each.deadline_ns, each.priority, each.client_id, each.parameters) for each in models.asked] == [
        (99, 5, "id", {"k": 1})
    ] * 2


def test_branches_run_side_by_side() -> None:
    models = Models()
    models.held = {"one": asyncio.Event(), "two": asyncio.Event()}

    def both_run() -> None:
        assert models.story == ["one starts", "two starts"]
        models.held["two"].set()
        models.held["one"].set()

    assert run(FORK, models, during=both_run) == {"y": b"xonextwoboth"}


def test_only_the_steps_that_an_output_needs_run() -> None:
    models = Models()
    assert run(FORK, models, outputs=("q",)) == {"q": b"xtwo"}
    assert models.story == ["two starts", "two is freed"]


def test_a_failing_step_is_named_and_the_others_are_cancelled() -> None:
    models = Models()
    models.held = {"one": asyncio.Event()}
    models.failing = {"two": WorkerError("worker_crashed", "its worker was killed", model="two")}
    with pytest.raises(MmsupError) as caught:
        run(FORK, models)
    assert caught.value.text == "in ensemble 'e', step 'two': its worker was killed"
    assert (caught.value.code, caught.value.model, caught.value.retryable) == ("worker_crashed", "e", True)
    assert models.story[-1] == "one is cancelled"


@pytest.mark.parametrize(
    ("code", "shown"),
    [("bad_request", "inference_failed"), ("unknown_model", "model_failed"), ("too_large", "too_large")],
)
def test_what_a_step_cannot_take_is_no_fault_of_the_client(code: str, shown: str) -> None:
    models = Models()
    models.failing = {"one": CallerError(code, "no")}
    with pytest.raises(MmsupError) as caught:
        run(CHAIN, models)
    assert caught.value.code == shown
