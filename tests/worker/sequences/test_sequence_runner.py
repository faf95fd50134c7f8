"""What the model is given of sequences: control inputs, state, rows that are slots; and what becomes of a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.specs import Metadata, ModelSpec, SequenceBatching, SequenceControl, SequenceState, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor, Result
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.sequences.control_inputs import control_arrays, id_problem
from mmsup.worker.sequences.live_sequence import SequenceMemory
from mmsup.worker.sequences.sequence_runner import SequenceRunner, Step
from mmsup.worker.sequences.sequence_signature import SequenceStep

START = SequenceControl("START", "start", "INT32")
END = SequenceControl("END", "end", "BOOL")
READY = SequenceControl("READY", "ready", "FP32", no=-1.0, yes=2.0)
ID = SequenceControl("ID", "id", "UINT64")
SUM = SequenceState("SUM", "NEW_SUM", "FP32", (1,))


class Adder:
    """Adds `x` to the state SUM; fails for -1. Keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[Arrays] = []

    def load(self, spec: ModelSpec) -> Metadata:
        raise NotImplementedError

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del wanted, buffers
        self.given.append({name: array.copy() for name, array in inputs.items()})
        if (inputs["x"] == -1).any():
            raise ValueError("minus one")
        total = inputs["x"] + inputs.get("SUM", np.float32(0))
        return {"y": total, "NEW_SUM": total}

    def shrink(self) -> None: ...

    def device_bytes(self) -> int:
        return 0

    def unload(self) -> None: ...


class Scene:
    def __init__(self, batching: SequenceBatching, rows: int = 4, engine: str = "ort") -> None:
        names = ("y", "NEW_SUM") if batching.states else ("y",)
        tensors = tuple(TensorSpec(name, "FP32", (1,)) for name in names)
        spec = ModelSpec("m", "1", "/nowhere", "f", engine, "p", rows, sequences=batching)
        self.model = Adder()
        metadata = Metadata("p", rows, (TensorSpec("x", "FP32", (1,)),), tensors)
        page = StatusPageWriter(make_status_page())
        self.runner = SequenceRunner(Executor(self.model, spec, metadata, page), batching)
        self._shape = (1, 1) if rows else (1,)

    def run(self, *steps: tuple[Step, float]) -> list[Result]:
        inputs = [{"x": np.full(self._shape, value, np.float32)} for _, value in steps]
        return self.runner.run([step for step, _ in steps], inputs, ())


def step(slot: int = 0, number: int | str = 7, memory: SequenceMemory | None = None, **flags: bool) -> Step:
    return slot, SequenceStep(number, **flags), memory or SequenceMemory()


def values(results: list[Result]) -> list[Any]:
    return [each.text if isinstance(each, ModelFailure) else each["y"].reshape(-1).tolist() for each in results]


def test_controls_have_the_values_and_datatypes_of_the_configuration() -> None:
    found = control_arrays([START, END, READY, ID], SequenceStep(7, is_start=True), is_batched=True)
    assert {name: (str(each.dtype), each.tolist()) for name, each in found.items()} == {
        "START": ("int32", [[1]]),
        "END": ("bool", [[False]]),
        "READY": ("float32", [[2.0]]),
        "ID": ("uint64", [[7]]),
    }
    blank = control_arrays([START, READY, ID], None, is_batched=False)
    assert {name: each.tolist() for name, each in blank.items()} == {"START": [0], "READY": [-1.0], "ID": [0]}
    text = control_arrays([replace(ID, datatype="BYTES")], SequenceStep("a"), is_batched=False)
    assert text["ID"].tolist() == [b"a"]


@pytest.mark.parametrize(
    ("datatype", "number", "problem"),
    [
        ("UINT64", (1 << 64) - 1, ""),
        ("INT32", 1 << 31, "beyond the range of INT32"),
        ("UINT64", "a", "use a number"),
        ("BYTES", 5, ""),
    ],
)
def test_an_id_that_the_model_cannot_be_told_is_a_problem(datatype: str, number: int | str, problem: str) -> None:
    found = id_problem([replace(ID, datatype=datatype)], number)
    assert problem in found
    assert bool(found) == bool(problem)


def test_state_goes_from_one_request_to_the_next_and_a_failure_leaves_it() -> None:
    scene, memory = Scene(SequenceBatching(states=(SUM,)), rows=0), SequenceMemory()
    one = step(memory=memory)
    assert values(scene.run((one, 2.0))) == [[2.0]]
    assert "minus one" in values(scene.run((one, -1.0)))[0]
    assert values(scene.run((one, 3.0))) == [[5.0]]
    assert values(scene.run((step(), 3.0))) == [[3.0]], "another sequence"


def test_clients_get_no_state_even_where_they_name_outputs() -> None:
    scene = Scene(SequenceBatching(states=(SUM,)), rows=0)
    (result,) = scene.runner.run([step()], [{"x": np.ones(1, np.float32)}], ["y"])
    assert isinstance(result, dict)
    assert list(result) == ["y"]


def test_with_direct_and_ready_each_sequence_has_the_row_of_its_slot() -> None:
    scene = Scene(SequenceBatching(controls=(READY, ID)))
    assert values(scene.run((step(0, 5), 1.0), (step(2, 6), 3.0))) == [[1.0], [3.0]]
    (given,) = scene.model.given
    assert given["x"].reshape(-1).tolist() == [1.0, 0.0, 3.0]
    assert given["READY"].reshape(-1).tolist() == [2.0, -1.0, 2.0]
    assert given["ID"].reshape(-1).tolist() == [5, 0, 6]


@pytest.mark.parametrize("batching", [SequenceBatching("oldest", controls=(READY,)), SequenceBatching()])
def test_otherwise_a_batch_has_no_empty_rows(batching: SequenceBatching) -> None:
    scene = Scene(batching)
    assert values(scene.run((step(0), 1.0), (step(2), 3.0))) == [[1.0], [3.0]]
    assert scene.model.given[0]["x"].reshape(-1).tolist() == [1.0, 3.0]


def test_a_batch_that_fails_is_run_one_by_one_where_the_server_has_the_state() -> None:
    scene = Scene(SequenceBatching("oldest", states=(SUM,)))
    found = values(scene.run((step(0), 1.0), (step(1), -1.0)))
    assert found[0] == [1.0]
    assert "minus one" in found[1]


@pytest.mark.parametrize("batching", [SequenceBatching("oldest"), SequenceBatching("oldest", states=(SUM,))])
def test_a_batch_that_fails_is_not_repeated_where_the_model_may_have_state(batching: SequenceBatching) -> None:
    scene = Scene(batching, engine="custom")
    found = values(scene.run((step(0), 1.0), (step(1), -1.0)))
    assert ["minus one" in each for each in found] == [True, True]
    assert len(scene.model.given) == 1
