"""A batch on a device that executes everything as late as it may."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pytest

from engines.late_device import LateDevice
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.device.batch_transfer import BatchTransfer, TransferOptions
from mmsup.worker.engines.device.chunking import TransferSizes
from mmsup.worker.engines.device.streams import DeviceStream
from mmsup.worker.execution.batch_arrays import Arrays

SMALL = TransferSizes(chunk=2000, direct=100, stage=300)
Model = Callable[[dict[str, Array]], dict[str, Array]]


def doubler(device: LateDevice, *, spoils: bool = False) -> Model:
    """`y = 2x` and, for each row, `sum` over the row of `z`. It may write to its inputs."""

    def compute(tensors: dict[str, Array]) -> dict[str, Array]:
        x, z = tensors["x"], tensors["z"]
        y, total = np.full_like(x, 77), np.full(len(z), 77, np.int64)

        def run() -> None:
            y[...] = x * 2
            total[...] = z.sum(axis=1)
            if spoils:
                x[...] = -1

        device.enqueue(DeviceStream.MAIN, run)
        return {"y": y, "sum": total}

    return compute


def jobs_of(rng: random.Random, count: int, width: int) -> list[Arrays]:
    jobs: list[Arrays] = []
    for _ in range(count):
        rows = rng.randrange(1, 5)
        x = np.array([rng.randrange(1000) for _ in range(rows * width)], np.float32).reshape(rows, width)
        z = np.array([rng.randrange(100) for _ in range(rows * 2)], np.int16).reshape(rows, 2)
        jobs.append({"x": x, "z": z})
    return jobs


def buffers_of(rng: random.Random, jobs: Sequence[Arrays]) -> list[dict[str, Array]]:
    """For some of the jobs, and some of it wrong."""
    buffers: list[dict[str, Array]] = []
    for job in jobs:
        shape = job["x"].shape
        kind = rng.randrange(4)
        y = {0: None, 1: np.zeros((shape[0] + 1, shape[1]), np.float32), 2: np.zeros(shape, np.float64)}.get(
            kind, np.zeros(shape, np.float32)
        )
        buffers.append({} if y is None else {"y": y})
    return buffers


def is_known(starts: set[int], address: int, size: int) -> bool:
    return address in starts


def expected(job: Mapping[str, Array]) -> tuple[list[float], list[int]]:
    return (job["x"] * 2).reshape(-1).tolist(), job["z"].sum(axis=1).tolist()


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("owns", [False, True])
def test_every_job_gets_its_own_answer_whatever_is_late(*, pads: bool, owns: bool) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        device = LateDevice(seed)
        starts: set[int] = set()
        transfer = BatchTransfer(device, TransferOptions(64, pads, owns, SMALL), partial(is_known, starts))
        for _ in range(3):  # later runs find the buffers of the first
            jobs = jobs_of(rng, rng.randrange(1, 12), rng.choice((1, 7, 60)))
            starts.clear()
            starts.update(each.ctypes.data for job in jobs for each in job.values() if rng.random() < 0.6)
            buffers = buffers_of(rng, jobs)
            right = [expected(job) for job in jobs]
            results = transfer.run(jobs, ("y", "sum"), buffers, doubler(device, spoils=owns))
            assert device.is_idle
            for job in jobs:  # their memory is reused now
                for each in job.values():
                    each[...] = 55
            for result, (y, total), buffer in zip(results, right, buffers, strict=True):
                assert result["y"].reshape(-1).tolist() == y
                assert result["sum"].tolist() == total
                if "y" in buffer and buffer["y"].dtype == np.float32 and buffer["y"].shape == result["y"].shape:
                    assert (result["y"] is buffer["y"]) is (buffer["y"].nbytes >= SMALL.direct)


def test_a_large_batch_goes_by_several_chunks_through_two_sets_of_buffers() -> None:
    device = LateDevice(1)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    jobs: list[Arrays] = [
        {"x": np.full((5, 100), index, np.float32), "z": np.ones((5, 2), np.int16)} for index in range(6)
    ]
    seen: list[int] = []
    model = doubler(device)

    def compute(tensors: dict[str, Array]) -> dict[str, Array]:
        seen.append(len(tensors["x"]))
        return model(tensors)

    results = transfer.run(jobs, ("y", "sum"), [{}] * 6, compute)
    assert seen == [5] * 6
    assert [each["y"][0, 0] for each in results] == [0, 2, 4, 6, 8, 10]
    assert sorted(device.buffers) == [8 * 4] * 2 + [8 * 400] * 2, "a bucket of 8 rows for each input, twice"
    transfer.run(jobs, ("y", "sum"), [{}] * 6, compute)
    assert len(device.buffers) == 4, "buffers stay"


@pytest.mark.parametrize("owns", [False, True])
def test_a_set_of_buffers_is_not_filled_again_before_it_has_been_read(*, owns: bool) -> None:
    for seed in range(20):
        device = LateDevice(seed)
        transfer = BatchTransfer(device, TransferOptions(64, owns_inputs=owns, sizes=SMALL), lambda *_: True)
        jobs: list[Arrays] = [
            {"x": np.full((5, 100), each, np.float32), "z": np.ones((5, 2), "i2")} for each in range(6)
        ]
        results = transfer.run(jobs, ("y",), [{}] * 6, doubler(device, spoils=owns))
        assert [each["y"].tolist() for each in results] == [[[2 * index] * 100] * 5 for index in range(6)]


def test_a_larger_bucket_replaces_the_buffer_and_a_smaller_one_uses_it() -> None:
    device = LateDevice(2)
    transfer = BatchTransfer(device, TransferOptions(6, sizes=SMALL), lambda *_: True)
    for rows in (1, 3, 2, 6, 5):
        job: Arrays = {"x": np.ones((rows, 1), np.float32), "z": np.ones((rows, 2), np.int16)}
        (result,) = transfer.run([job], ("y",), [{}], doubler(device))
        assert result["y"].tolist() == [[2]] * rows
    assert device.buffers == [4, 4, 16, 16, 24, 24], "4 and then 6 rows, the most there are"
    transfer.shrink()
    transfer.run([job], ("y",), [{}], doubler(device))
    assert len(device.buffers) == 8


def test_rows_behind_the_batch_are_zeros_where_the_model_sees_whole_buckets() -> None:
    device = LateDevice(3)
    transfer = BatchTransfer(device, TransferOptions(8, pads=True, sizes=SMALL), lambda *_: True)
    seen: list[Array] = []

    def compute(tensors: dict[str, Array]) -> dict[str, Array]:
        device.enqueue(DeviceStream.MAIN, lambda: seen.append(tensors["x"].copy()))
        return {"y": tensors["x"]}

    for rows in (4, 3):
        (result,) = transfer.run([{"x": np.full((rows, 1), 9.0)}], ("y",), [{}], compute)
        assert result["y"].tolist() == [[9]] * rows
    assert [each.reshape(-1).tolist() for each in seen] == [[9, 9, 9, 9], [9, 9, 9, 0]]


def test_small_inputs_go_in_one_copy_and_large_ones_from_where_they_lie() -> None:
    device = LateDevice(4)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    jobs: list[Arrays] = [{"x": np.ones((1, 50), np.float32), "z": np.ones((1, 2), np.int16)} for _ in range(8)]
    transfer.run(jobs, ("sum",), [{}] * 8, doubler(device))
    assert device.puts == 8 + 1
    assert device.gets == 1, "what has no buffer comes in one piece"


def test_jobs_that_cannot_be_one_batch_are_refused_before_the_device_is_touched() -> None:
    device = LateDevice(5)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    jobs = [{"x": np.ones((1, 2))}, {"x": np.ones((1, 3))}]
    with pytest.raises(ValueError, match="cannot be one batch"):
        transfer.run(jobs, ("y",), [{}, {}], doubler(device))
    assert not device.buffers


def test_a_result_of_other_rows_than_the_batch_is_refused() -> None:
    device = LateDevice(6)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    jobs = [{"x": np.ones((1, 2))}, {"x": np.ones((1, 2))}]
    with pytest.raises(ValueError, match=r"output 'y' has shape \[1, 2\] for a batch of 2"):
        transfer.run(jobs, ("y",), [{}, {}], lambda tensors: {"y": tensors["x"][:1]})


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_under_way_after_a_model_has_raised(seed: int) -> None:
    device = LateDevice(seed)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    jobs = [{"x": np.ones((5, 100), np.float32)} for _ in range(4)]
    calls = iter(range(10))

    def compute(tensors: dict[str, Array]) -> dict[str, Array]:
        if next(calls) == 1:
            raise RuntimeError("no")
        return {"y": tensors["x"]}

    with pytest.raises(RuntimeError, match="no"):
        transfer.run(jobs, ("y",), [{}] * 4, compute)
    assert device.is_idle
    assert transfer.run(jobs, ("y",), [{}] * 4, compute)[3]["y"].tolist() == jobs[3]["x"].tolist()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 40)])
def test_a_model_without_a_batch_axis_runs_one_job_of_any_shape(shape: tuple[int, ...]) -> None:
    device = LateDevice(7)
    transfer = BatchTransfer(device, TransferOptions(0, sizes=SMALL), lambda *_: False)
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    buffer = np.zeros(shape, np.float32)
    (result,) = transfer.run([{"x": array}], ("y",), [{"y": buffer}], lambda tensors: {"y": tensors["x"]})
    assert result["y"].shape == shape
    assert result["y"].tolist() == array.tolist()
    assert (result["y"] is buffer) is (array.nbytes >= SMALL.direct)


def test_an_output_that_was_not_made_is_not_answered() -> None:
    device = LateDevice(8)
    transfer = BatchTransfer(device, TransferOptions(4, sizes=SMALL), lambda *_: True)
    (result,) = transfer.run([{"x": np.ones((1, 1))}], ("y", "w"), [{}], lambda tensors: {"y": tensors["x"]})
    assert list(result) == ["y"]


def test_strided_inputs_are_taken_in_row_major_order() -> None:
    device = LateDevice(9)
    transfer = BatchTransfer(device, TransferOptions(64, sizes=SMALL), lambda *_: True)
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    (result,) = transfer.run([{"x": array}], ("y",), [{}], lambda tensors: {"y": tensors["x"]})
    assert result["y"].tolist() == array.tolist()
