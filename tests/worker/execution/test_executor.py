"""Running a model singly and in batches, with and without failures."""

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
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure

Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class FakeEngine:
    """An engine whose run is a function of the test."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sizes: list[int] = []
        self.shrunk = 0

    def load(self, spec: ModelSpec) -> Metadata:
        raise NotImplementedError

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
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


def make_executor(page: int, run: Run, *, batch: int = 8, device: str = "cpu") -> tuple[Executor, FakeEngine]:
    inputs, outputs = (TensorSpec("x", "FP32", (1,)),), (TensorSpec("y", "FP32", (1,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", batch, inputs, outputs, device=device)
    engine = FakeEngine(run)
    return Executor(engine, spec, Metadata("p", batch, inputs, outputs), StatusPageWriter(page)), engine


def job(*values: float) -> Arrays:
    return {"x": np.array([[value] for value in values], np.float32)}


def doubled(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"y": inputs["x"] * 2}


def values(result: Arrays | ModelFailure) -> list[float]:
    assert not isinstance(result, ModelFailure), result
    return [float(each) for each in result["y"].reshape(-1)]


def test_jobs_run_together_and_each_gets_its_own_rows(page: int) -> None:
    executor, engine = make_executor(page, doubled)
    results = executor.run([job(1), job(2, 3), job(4)], ())
    assert [values(each) for each in results] == [[2], [4, 6], [8]]
    assert engine.sizes == [4]


def test_a_batch_that_raises_is_run_one_by_one_and_only_the_guilty_fails(page: int) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return doubled(inputs)

    executor, engine = make_executor(page, picky)
    first, guilty, last = executor.run([job(1), job(13), job(2)], ())
    assert values(first) == [2]
    assert values(last) == [4]
    assert guilty == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")
    assert engine.sizes == [3, 1, 1, 1]


def test_a_callers_error_keeps_its_code(page: int) -> None:
    def refuse(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise CallerError("bad_request", "input 'x' is not text")

    executor, _ = make_executor(page, refuse)
    assert executor.run_one(job(1)) == ModelFailure("bad_request", "input 'x' is not text")


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
    executor, engine = make_executor(page, lambda _: answer)
    results = executor.run([job(1), job(2)], ())
    assert results == [ModelFailure("inference_failed", f"model 'm': output 'y' {text}")] * 2
    assert engine.sizes == [2]


def test_a_batch_out_of_device_memory_is_run_again_by_halves(page: int) -> None:
    def small_only(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if len(inputs["x"]) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return doubled(inputs)

    executor, engine = make_executor(page, small_only, device="cuda:0")
    results = executor.run([job(1), job(2, 3), job(4)], ())
    assert [values(each) for each in results] == [[2], [4, 6], [8]]
    assert engine.sizes == [4, 2, 2]
    assert engine.shrunk == 1


def test_device_memory_that_stays_short_is_reported_to_every_caller(page: int) -> None:
    def never(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")

    executor, engine = make_executor(page, never, device="cuda:0")
    results = executor.run([job(1), job(2)], ())
    assert [each.code for each in results if isinstance(each, ModelFailure)] == ["gpu_oom", "gpu_oom"]
    assert engine.sizes == [2, 1]


def test_a_lost_device_is_raised_and_not_returned(page: int) -> None:
    def lost(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    executor, _ = make_executor(page, lost, device="cuda:0")
    with pytest.raises(DeviceLost):
        executor.run_one(job(1))


@pytest.mark.parametrize("exit_request", [SystemExit(3), KeyboardInterrupt()])
def test_a_models_exit_is_raised_and_not_returned(page: int, exit_request: BaseException) -> None:
    def leave(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise exit_request

    executor, _ = make_executor(page, leave)
    with pytest.raises(type(exit_request)):
        executor.run_one(job(1))


def test_each_further_call_of_the_engine_restarts_the_clock_of_the_page(page: int) -> None:
    seen: list[tuple[Activity, int]] = []
    reader, writer = StatusPageReader(page), StatusPageWriter(page)

    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        progress = reader.read()
        seen.append((progress.activity, progress.since_ns))
        if len(inputs["x"]) > 1:
            raise ValueError("one at a time")
        return doubled(inputs)

    run, _ = make_executor(page, picky)
    writer.batch_started([1, 2], 1)
    run.run([job(1), job(2)], ())
    assert [activity for activity, _ in seen] == [Activity.BUSY] * 3
    assert 1 == seen[0][1] < seen[1][1] < seen[2][1]


class FakeBatchingEngine(FakeEngine):
    """An engine that assembles batches, and writes into output buffers."""

    assembles_batches = True
    pins_memory = False
    pinned_memory = object()
    min_buffer_bytes = 1

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.batches: list[int] = []

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        made = super().infer(inputs, wanted)
        for name, array in buffers.items():
            array[:] = made[name]
        return {**made, **buffers}

    def run_batch(
        self, jobs: Sequence[Mapping[str, Array]], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[dict[str, Array]]:
        self.batches.append(len(jobs))
        return [dict(self.infer(each, wanted, buffer)) for each, buffer in zip(jobs, buffers, strict=True)]


def batching_executor(
    page: int, run: Run, outputs: tuple[TensorSpec, ...], device: str = "cpu"
) -> tuple[Executor, FakeBatchingEngine]:
    inputs = (TensorSpec("x", "FP32", (1,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", 8, inputs, outputs, device=device)
    engine = FakeBatchingEngine(run)
    return Executor(engine, spec, Metadata("p", 8, inputs, outputs), StatusPageWriter(page)), engine


WIDE = (TensorSpec("y", "FP32", (5000,)),)


def wide(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    return {"y": np.repeat(inputs["x"] * 2, 5000, axis=1)}


def test_a_batching_engine_gets_the_jobs_with_their_buffers(page: int) -> None:
    executor, engine = batching_executor(page, wide, WIDE)
    jobs = [job(1), job(2, 3)]
    memory = [memoryview(bytearray(64 << 10)) for _ in jobs]
    buffers = [executor.output_buffers(each, (), view) for each, view in zip(jobs, memory, strict=True)]
    assert [each["y"].shape for each in buffers] == [(1, 5000), (2, 5000)]
    results = executor.run(jobs, (), buffers)
    assert engine.batches == [2]
    for result, buffer, expected in zip(results, buffers, ([2], [4, 6]), strict=True):
        assert not isinstance(result, ModelFailure)
        assert result["y"] is buffer["y"]
        assert list(result["y"][:, 0]) == expected


def test_an_open_shape_has_a_buffer_from_the_second_run_on(page: int) -> None:
    executor, _ = batching_executor(page, wide, (TensorSpec("y", "FP32", (-1,)),))
    view = memoryview(bytearray(64 << 10))
    assert not executor.output_buffers(job(1), (), view)
    executor.run_one(job(1))
    assert executor.output_buffers(job(1), (), view)["y"].shape == (1, 5000)
    assert not executor.output_buffers(job(1), (), None)
    assert not executor.output_buffers(job(1), (), view[:100])
    assert executor.uses_output_buffers


def test_an_engine_that_allocates_its_outputs_gets_no_buffer(page: int) -> None:
    executor, _ = make_executor(page, doubled)
    assert not executor.uses_output_buffers
    assert not executor.output_buffers(job(1), (), memoryview(bytearray(64 << 10)))


def test_a_batch_that_the_engine_cannot_run_is_run_one_by_one(page: int) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return wide(inputs)

    executor, _ = batching_executor(page, picky, WIDE)
    first, guilty = executor.run([job(1), job(13)], ())
    assert values(first)[0] == 2
    assert guilty == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")


def test_a_batch_of_the_engines_that_does_not_fit_the_device_is_run_by_halves(page: int) -> None:
    refusals = iter([RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")])

    def tight(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        for error in refusals:
            raise error
        return wide(inputs)

    executor, engine = batching_executor(page, tight, WIDE, device="cuda:0")
    results = executor.run([job(1), job(2), job(3)], ())
    assert [values(each)[0] for each in results] == [2, 4, 6]
    assert engine.batches == [3, 1, 2]
    assert engine.shrunk == 1


def test_each_result_of_an_engines_batch_is_checked_against_the_declaration(page: int) -> None:
    def faulty(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return {"y": wide(inputs)["y"].astype(np.float64 if inputs["x"][0] == 2 else np.float32)}

    executor, _ = batching_executor(page, faulty, WIDE)
    good, bad = executor.run([job(1), job(2)], ())
    assert values(good)[0] == 2
    assert isinstance(bad, ModelFailure)
    assert "is declared as FP32, but is FP64" in bad.text


LARGE = 40_000
"""FP32 of a row: more than is always batched."""


def large_executor(page: int, run: Run, engine: type[FakeEngine] = FakeEngine) -> tuple[Executor, FakeEngine]:
    inputs, outputs = (TensorSpec("x", "FP32", (LARGE,)),), (TensorSpec("y", "FP32", (LARGE,)),)
    spec = ModelSpec("m", "1", "/m/1", "a", "custom", "p", 8, inputs, outputs)
    made = engine(run)
    return Executor(made, spec, Metadata("p", 8, inputs, outputs), StatusPageWriter(page)), made


def row(value: float) -> Arrays:
    return {"x": np.full((1, LARGE), value, np.float32)}


def test_large_jobs_get_the_same_results_batched_and_single(page: int) -> None:
    executor, engine = large_executor(page, lambda inputs: {"y": np.sqrt(inputs["x"]) * 2})
    jobs = [row(1), row(4), {"x": np.full((2, LARGE), 9, np.float32)}, row(16)]
    methods: set[tuple[int, ...]] = set()
    for _ in range(20):
        engine.sizes.clear()
        results = executor.run(jobs, ())
        methods.add(tuple(engine.sizes))
        for result, rows, value in zip(results, (1, 1, 2, 1), (2, 4, 6, 8), strict=True):
            assert not isinstance(result, ModelFailure)
            assert result["y"].shape == (rows, LARGE)
            assert (result["y"] == value).all()
    assert {(5,), (1, 4)} <= methods, "both methods were tested"


@pytest.mark.parametrize("single", [0, 1, 4])
def test_the_guilty_of_large_jobs_fails_alone_whether_batched_or_not(
    single: int, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen is not served")
        return {"y": inputs["x"] * 2}

    monkeypatch.setattr(BatchingBenefit, "single_runs", lambda *_: single)
    executor, _ = large_executor(page, picky)
    jobs = [row(each) for each in (1, 13, 2, 3)]
    for values_given, guilty in ((jobs, 1), ([jobs[1], jobs[0], *jobs[2:]], 0)):
        results = executor.run(values_given, ())
        assert [isinstance(each, ModelFailure) for each in results] == [index == guilty for index in range(4)]
        assert results[guilty] == ModelFailure("inference_failed", "model 'm' failed: thirteen is not served")


@pytest.mark.parametrize("single", [0, 1, 3])
def test_large_results_are_in_their_buffers_whether_batched_or_not(
    single: int, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Writer(FakeEngine):
        min_buffer_bytes = 1

    monkeypatch.setattr(BatchingBenefit, "single_runs", lambda *_: single)
    executor, _ = large_executor(page, lambda inputs: {"y": inputs["x"] * 2}, Writer)
    jobs = [row(1), row(2), row(3)]
    memory = [memoryview(bytearray(LARGE * 4)) for _ in jobs]
    buffers = [executor.output_buffers(each, (), view) for each, view in zip(jobs, memory, strict=True)]
    for index, (result, buffer) in enumerate(zip(executor.run(jobs, (), buffers), buffers, strict=True)):
        assert not isinstance(result, ModelFailure)
        assert (result["y"] == 2 * (index + 1)).all()
        if index >= single:
            assert result["y"] is buffer["y"]


def test_small_jobs_are_always_batched(page: int) -> None:
    executor, engine = make_executor(page, doubled)
    for _ in range(200):
        executor.run([job(1), job(2)], ())
    assert engine.sizes == [2] * 200


def test_only_an_engine_that_pins_memory_is_notified_of_it(page: int) -> None:
    executor, _ = make_executor(page, doubled)
    assert executor.pinned_memory is None
    _, engine = batching_executor(page, wide, WIDE)
    assert Executor(engine, executor.spec, executor.metadata, StatusPageWriter(page)).pinned_memory is None
    engine.pins_memory = True
    assert Executor(engine, executor.spec, executor.metadata, StatusPageWriter(page)).pinned_memory is not None
