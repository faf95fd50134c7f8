"""Running a model alone and in batches, when it goes well and when it does not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.memory.status_page import Activity, StatusPageReader, StatusPageWriter, make_status_page
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.batching_benefit import BatchingBenefit
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.execution.model_errors_guard import DeviceLost

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class FakeEngine:
    """An engine whose run the test writes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sizes: list[int] = []
        self.shrunk = 0

    def load(self, spec: ModelSpec) -> Metadata:
        raise NotImplementedError

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], room: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        self.sizes.append(len(inputs["x"]))
        return self.run(inputs)

    def shrink(self) -> None:
        self.shrunk += 1

    def device_bytes(self) -> int:
        return 0

    def unload(self) -> None: ...


@pytest.fixture
def page() -> Iterator[int]:
    fd = make_status_page()
    yield fd
    os.close(fd)


def execution(page: int, run: Run, *, batch: int = 8, device: str = "cpu") -> tuple[Executor, FakeEngine]:
    inputs, outputs = (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", batch, inputs, outputs, device=device)
    engine = FakeEngine(run)
    return Executor(engine, spec, Metadata("p", batch, inputs, outputs), StatusPageWriter(page)), engine


def job(*values: float) -> Arrays:
    return {"x": np.array([[value] for value in values], np.float32)}


def doubled(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"y": inputs["x"] * 2}


def values(outcome: Arrays | ModelFailure) -> list[float]:
    assert not isinstance(outcome, ModelFailure), outcome
    return [float(each) for each in outcome["y"].reshape(-1)]


def test_jobs_run_together_and_each_gets_its_own_rows(page: int) -> None:
    run, engine = execution(page, doubled)
    outcomes = run.run([job(1), job(2, 3), job(4)], ())
    assert [values(each) for each in outcomes] == [[2], [4, 6], [8]]
    assert engine.sizes == [4]


def test_a_batch_that_raises_is_run_one_by_one_and_only_the_guilty_fails(page: int) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return doubled(inputs)

    run, engine = execution(page, picky)
    first, guilty, last = run.run([job(1), job(13), job(2)], ())
    assert values(first) == [2]
    assert values(last) == [4]
    assert guilty == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")
    assert engine.sizes == [3, 1, 1, 1]


def test_an_error_of_the_callers_own_keeps_its_code(page: int) -> None:
    def refuse(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise CallerError("bad_request", "input 'x' is not text")

    run, _ = execution(page, refuse)
    assert run.run_one(job(1)) == ModelFailure("bad_request", "input 'x' is not text")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "is declared, but was not given"),
        ({"y": np.zeros((2, 1), np.float64)}, "is declared as FP32, but is FP64"),
        ({"y": np.zeros((2, 1), np.complex64)}, "is declared as FP32, but is complex64"),
        ({"y": np.zeros((3, 1), np.float32)}, "has shape [3, 1] for a batch of 2"),
        ({"y": np.float32(1)}, "has shape [] for a batch of 2"),
    ],
)
def test_an_output_against_its_declaration_fails_the_whole_batch_and_is_named(
    page: int, answer: dict[str, Array], text: str
) -> None:
    answer = {name: np.asarray(array) for name, array in answer.items()}
    run, engine = execution(page, lambda _: answer)
    outcomes = run.run([job(1), job(2)], ())
    assert outcomes == [ModelFailure("inference_failed", f"model 'm': output 'y' {text}")] * 2
    assert engine.sizes == [2]


def test_device_memory_is_asked_for_again_by_halves(page: int) -> None:
    def small_only(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if len(inputs["x"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return doubled(inputs)

    run, engine = execution(page, small_only, device="cuda:0")
    outcomes = run.run([job(1), job(2, 3), job(4)], ())
    assert [values(each) for each in outcomes] == [[2], [4, 6], [8]]
    assert engine.sizes == [4, 2, 2]
    assert engine.shrunk == 1


def test_device_memory_that_stays_short_is_said_to_every_caller(page: int) -> None:
    def never(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")

    run, engine = execution(page, never, device="cuda:0")
    outcomes = run.run([job(1), job(2)], ())
    assert [each.code for each in outcomes if isinstance(each, ModelFailure)] == ["gpu_oom", "gpu_oom"]
    assert engine.sizes == [2, 1]


def test_a_lost_device_ends_the_process_and_is_no_answer(page: int) -> None:
    def lost(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    run, _ = execution(page, lost, device="cuda:0")
    with pytest.raises(DeviceLost):
        run.run_one(job(1))


@pytest.mark.parametrize("wish", [SystemExit(3), KeyboardInterrupt()])
def test_a_models_wish_to_exit_is_not_an_answer_either(page: int, wish: BaseException) -> None:
    def leave(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise wish

    run, _ = execution(page, leave)
    with pytest.raises(type(wish)):
        run.run_one(job(1))


def test_the_page_says_busy_from_the_start_of_each_run(page: int) -> None:
    seen: list[Activity] = []
    reader = StatusPageReader(page)

    def look(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        seen.append(reader.read().activity)
        return doubled(inputs)

    run, _ = execution(page, look)
    run.run_one(job(1))
    assert seen == [Activity.BUSY]


class Gatherer(FakeEngine):
    """An engine that makes batches by itself, and writes into room."""

    gathers_itself = True
    pins_memory = False
    min_buffer_bytes = 1

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.batches: list[int] = []

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], room: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        made = super().infer(inputs, outputs)
        for name, array in room.items():
            array[:] = made[name]
        return {**made, **room}

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[dict[str, Array]]:
        self.batches.append(len(jobs))
        return [dict(self.infer(each, outputs, room)) for each, room in zip(jobs, rooms, strict=True)]


def gathering(page: int, run: Run, outputs: tuple[TensorSpec, ...], device: str = "cpu") -> tuple[Executor, Gatherer]:
    inputs = (TensorSpec("x", "FP32", (1,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", 8, inputs, outputs, device=device)
    engine = Gatherer(run)
    return Executor(engine, spec, Metadata("p", 8, inputs, outputs), StatusPageWriter(page)), engine


WIDE = (TensorSpec("y", "FP32", (5000,)),)


def wide(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"y": np.repeat(inputs["x"] * 2, 5000, axis=1)}


def test_an_engine_that_gathers_gets_the_jobs_with_their_rooms(page: int) -> None:
    run, engine = gathering(page, wide, WIDE)
    jobs = [job(1), job(2, 3)]
    memory = [memoryview(bytearray(64 << 10)) for _ in jobs]
    rooms = [run.output_buffers(each, (), view) for each, view in zip(jobs, memory, strict=True)]
    assert [each["y"].shape for each in rooms] == [(1, 5000), (2, 5000)]
    outcomes = run.run(jobs, (), rooms)
    assert engine.batches == [2]
    for outcome, room, expected in zip(outcomes, rooms, ([2], [4, 6]), strict=True):
        assert not isinstance(outcome, ModelFailure)
        assert outcome["y"] is room["y"]
        assert list(outcome["y"][:, 0]) == expected


def test_an_open_shape_gets_its_room_from_the_second_run_on(page: int) -> None:
    run, _ = gathering(page, wide, (TensorSpec("y", "FP32", (-1,)),))
    view = memoryview(bytearray(64 << 10))
    assert not run.output_buffers(job(1), (), view)
    run.run_one(job(1))
    assert run.output_buffers(job(1), (), view)["y"].shape == (1, 5000)
    assert not run.output_buffers(job(1), (), None)
    assert not run.output_buffers(job(1), (), view[:100])
    assert run.uses_output_buffers


def test_an_engine_that_makes_its_own_arrays_is_offered_no_room(page: int) -> None:
    run, _ = execution(page, doubled)
    assert not run.uses_output_buffers
    assert not run.output_buffers(job(1), (), memoryview(bytearray(64 << 10)))


def test_a_batch_that_the_engine_cannot_run_is_run_one_by_one(page: int) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return wide(inputs)

    run, _ = gathering(page, picky, WIDE)
    first, guilty = run.run([job(1), job(13)], ())
    assert values(first)[0] == 2
    assert guilty == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")


def test_a_batch_that_does_not_fit_the_device_is_handed_over_by_halves(page: int) -> None:
    refusals = iter([RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")])

    def tight(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for error in refusals:
            raise error
        return wide(inputs)

    run, engine = gathering(page, tight, WIDE, device="cuda:0")
    outcomes = run.run([job(1), job(2), job(3)], ())
    assert [values(each)[0] for each in outcomes] == [2, 4, 6]
    assert engine.batches == [3, 1, 2]
    assert engine.shrunk == 1


def test_each_part_of_a_handed_over_batch_is_held_to_its_declaration(page: int) -> None:
    def faulty(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"y": wide(inputs)["y"].astype(np.float64 if inputs["x"][0] == 2 else np.float32)}

    run, _ = gathering(page, faulty, WIDE)
    good, bad = run.run([job(1), job(2)], ())
    assert values(good)[0] == 2
    assert isinstance(bad, ModelFailure)
    assert "is declared as FP32, but is FP64" in bad.text


LARGE = 40_000
"""FP32 of a row: more than is gathered unasked."""


def large(page: int, run: Run, engine: type[FakeEngine] = FakeEngine) -> tuple[Executor, FakeEngine]:
    inputs, outputs = (TensorSpec("x", "FP32", (LARGE,)),), (TensorSpec("y", "FP32", (LARGE,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", 8, inputs, outputs)
    made = engine(run)
    return Executor(made, spec, Metadata("p", 8, inputs, outputs), StatusPageWriter(page)), made


def row(value: float) -> Arrays:
    return {"x": np.full((1, LARGE), value, np.float32)}


def test_large_jobs_get_the_same_answers_gathered_and_alone(page: int) -> None:
    run, engine = large(page, lambda inputs: {"y": np.sqrt(inputs["x"]) * 2})
    jobs = [row(1), row(4), {"x": np.full((2, LARGE), 9, np.float32)}, row(16)]
    ways: set[tuple[int, ...]] = set()
    for _ in range(20):
        engine.sizes.clear()
        outcomes = run.run(jobs, ())
        ways.add(tuple(engine.sizes))
        for outcome, rows, value in zip(outcomes, (1, 1, 2, 1), (2, 4, 6, 8), strict=True):
            assert not isinstance(outcome, ModelFailure)
            assert outcome["y"].shape == (rows, LARGE)
            assert (outcome["y"] == value).all()
    assert {(5,), (1, 4)} <= ways, "both ways were tried"


@pytest.mark.parametrize("way", [0, 1, 4])
def test_the_guilty_of_large_jobs_fails_alone_whether_gathered_or_not(
    way: int, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return {"y": inputs["x"] * 2}

    monkeypatch.setattr(BatchingBenefit, "alone", lambda *_: way)
    run, _ = large(page, picky)
    jobs = [row(each) for each in (1, 13, 2, 3)]
    for values_given, guilty in ((jobs, 1), ([jobs[1], jobs[0], *jobs[2:]], 0)):
        outcomes = run.run(values_given, ())
        assert [isinstance(each, ModelFailure) for each in outcomes] == [index == guilty for index in range(4)]
        assert outcomes[guilty] == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")


@pytest.mark.parametrize("way", [0, 1, 3])
def test_large_results_lie_in_their_room_whether_gathered_or_not(
    way: int, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer(FakeEngine):
        min_buffer_bytes = 1

    monkeypatch.setattr(BatchingBenefit, "alone", lambda *_: way)
    run, _ = large(page, lambda inputs: {"y": inputs["x"] * 2}, Writer)
    jobs = [row(1), row(2), row(3)]
    memory = [memoryview(bytearray(LARGE * 4)) for _ in jobs]
    rooms = [run.output_buffers(each, (), view) for each, view in zip(jobs, memory, strict=True)]
    for index, (outcome, room) in enumerate(zip(run.run(jobs, (), rooms), rooms, strict=True)):
        assert not isinstance(outcome, ModelFailure)
        assert (outcome["y"] == 2 * (index + 1)).all()
        if index >= way:
            assert outcome["y"] is room["y"]


def test_small_jobs_are_gathered_unasked(page: int) -> None:
    run, engine = execution(page, doubled)
    for _ in range(200):
        run.run([job(1), job(2)], ())
    assert engine.sizes == [2] * 200


def test_only_an_engine_that_pins_memory_is_told_of_it(page: int) -> None:
    run, _ = execution(page, doubled)
    assert run.pinned_memory_user is None
    _, engine = gathering(page, wide, WIDE)
    assert Executor(engine, run.spec, run.metadata, StatusPageWriter(page)).pinned_memory_user is None
    engine.pins_memory = True
    assert Executor(engine, run.spec, run.metadata, StatusPageWriter(page)).pinned_memory_user is not None
