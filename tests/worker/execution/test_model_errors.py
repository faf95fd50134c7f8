"""What a caller is told of an exception of model code."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.model_errors import TEXT_LIMIT, failure_of, scrub

CPU = ModelSpec("bert", "1", "/m/bert/1", "model.py", "custom", "python", memory_bytes=1000)
GPU = ModelSpec("bert", "1", "/m/bert/1", "model.py", "custom", "python", device="cuda:0")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("cannot read /srv/models/bert/1/weights.bin", "cannot read weights.bin"),
        ("'/srv/a/b': missing", "'b': missing"),
        ("segment /dev/shm/psm_1 of /proc/12/fd/3", "segment psm_1 of 3"),
        ("<Tensor at 0x7f12ab34cd56>", "<Tensor at (address)>"),
        ("see https://example.org/a/b for more", "see https://example.org/a/b for more"),
        ("got 3/4 and a/b/c", "got 3/4 and a/b/c"),
        ("two\nlines\tand\x00\x1b[31m more", "two lines and[31m more"),
    ],
)
def test_a_text_loses_paths_addresses_and_control_characters(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


def test_a_text_is_bounded() -> None:
    assert len(scrub("x" * 10_000)) == TEXT_LIMIT


def test_an_exception_is_reported_as_the_models_failure() -> None:
    failure = failure_of(RuntimeError("bad luck in /srv/models/x.py"), CPU)
    assert (failure.code, failure.text) == ("inference_failed", "model 'bert' failed: bad luck in x.py")


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError()])
def test_an_exception_without_a_message_still_gives_a_sentence(error: BaseException) -> None:
    assert failure_of(error, CPU).text == f"model 'bert' failed: {type(error).__name__} without a message"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_a_failed_allocation_names_the_memory_cap(error: Exception) -> None:
    failure = failure_of(error, CPU)
    assert failure.code == "inference_failed"
    assert failure.text == "model 'bert' ran out of memory under its cap of 1000 bytes"


def test_an_error_of_mmsup_keeps_its_code() -> None:
    failure = failure_of(CallerError("bad_request", "input 'x' is not text"), CPU)
    assert (failure.code, failure.text) == ("bad_request", "input 'x' is not text")


def test_device_memory_and_a_lost_device_have_different_codes() -> None:
    assert failure_of(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), GPU).code == "gpu_oom"
    lost = failure_of(RuntimeError("CUDA error: an illegal memory access was encountered"), GPU)
    assert (lost.code, lost.device_fault) == ("gpu_fault", DeviceFault.LOST)
