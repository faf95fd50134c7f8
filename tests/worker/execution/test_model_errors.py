"""What a caller is told of an exception of model code."""

from __future__ import annotations

import asyncio
import time

import pytest

from mmsup.ipc.errors import CallerError
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.model_errors import TEXT_LIMIT, ModelFailure, call_model_code, caught, failure_of, scrub

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
        ('a Traceback (most recent call last):\n File "/x/h.py", line 3', "a "),
        ("a:\nTraceback (most recent call last):\n  File 'x'\n    1/0\nE: b\n", "a: E: b"),
        ('a\nTraceback of TorchScript (most recent call last):\n  File "c.py", line 5, in f\n  x\nE: b', "a E: b"),
        ('a in File "/x/h.py", line 3, in infer b', "a in b"),
        ("invalid syntax (model.py, line 1)", "invalid syntax"),
        ("Expecting value: line 1 column 1 (char 0)", "Expecting value: line 1 column 1 (char 0)"),
        ("two\nlines\tand\x00\x1b[31m more", "two lines and[31m more"),
    ],
)
def test_a_text_loses_paths_addresses_and_control_characters(text: str, scrubbed: str) -> None:
    assert scrub(text) == scrubbed


@pytest.mark.parametrize("unit", ["(", "(a, ", "File '", "File ' line", "Traceback ", "Traceback\n", ", line 1", "/a"])
def test_a_long_text_does_not_hold_up_the_worker(unit: str) -> None:
    started = time.process_time()
    scrub(unit * 100_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f(:\n", "model 'bert' failed: invalid syntax"),
        ("x = 'a\n", "model 'bert' failed: unterminated string literal"),
        ("def f():\nx = 1\n", "model 'bert' failed: expected an indented block after function definition"),
    ],
)
def test_a_syntax_error_of_a_model_names_neither_its_file_nor_its_line(code: str, told: str) -> None:
    with pytest.raises(SyntaxError) as raised:
        compile(code, "/m/bert/1/model.py", "exec")
    failure = caught(raised.value, CPU)
    assert failure.text == told
    assert "line" in failure.detail  # for the operator


def _divides_by_zero(*_: object) -> str:
    raise ZeroDivisionError


def _leaves(*_: object) -> str:
    raise SystemExit(3)


class _OwnText(str):
    __slots__ = ()
    strip = split = lower = __format__ = _divides_by_zero  # type: ignore[assignment]


@pytest.mark.parametrize("spec", [CPU, GPU])
@pytest.mark.parametrize("members", [{"__str__": _divides_by_zero}, {"__str__": _leaves}, {"__str__": lambda _: 3}])
def test_an_exception_that_cannot_be_printed_fails_its_request_alone(
    members: dict[str, object], spec: ModelSpec
) -> None:
    def infer() -> None:
        raise type("Odd", (Exception,), members)

    failure = call_model_code(infer, spec)
    assert isinstance(failure, ModelFailure)
    assert (failure.code, failure.text) == ("inference_failed", "model 'bert' failed: Odd without a message")


def test_an_exception_with_a_text_of_its_own_type_fails_its_request_alone() -> None:
    assert caught(RuntimeError(_OwnText("bad luck")), CPU).text == "model 'bert' failed: bad luck"
    assert caught(type("Odd", (Exception,), {"__str__": lambda _: _OwnText("bad")})(), CPU).text.endswith(": bad")


def test_an_exception_without_attributes_fails_its_request_alone() -> None:
    failure = caught(type("Odd", (Exception,), {"__getattribute__": _divides_by_zero})(), CPU)
    assert failure.code == "inference_failed"


def test_a_text_is_bounded() -> None:
    assert len(scrub("x" * 10_000)) == TEXT_LIMIT


def test_an_exception_is_reported_as_the_models_failure() -> None:
    failure = failure_of(RuntimeError("bad luck in /srv/models/x.py"), CPU)
    assert (failure.code, failure.text) == ("inference_failed", "model 'bert' failed: bad luck in x.py")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(2, "No such file", "conf/words"), "[Errno 2] No such file: 'words'"),
        (OSError(18, "Cross-device", b"a/b/", None, "c"), "[Errno 18] Cross-device: b'b' -> 'c'"),
        (IsADirectoryError(21, "Is a directory", "/"), "[Errno 21] Is a directory: ''"),
        (OSError("a disk of its own"), "a disk of its own"),
        (FileNotFoundError(2, "No such file", 3), "[Errno 2] No such file: 3"),
    ],
)
def test_an_error_of_a_file_names_the_file_and_not_its_folders(error: OSError, told: str) -> None:
    assert failure_of(error, CPU).text == f"model 'bert' failed: {told}"


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


def test_half_a_surrogate_pair_in_an_exception_reaches_the_operator_as_a_question_mark() -> None:
    failure = caught(ValueError("name '\ud800'"), CPU)
    assert (failure.text, failure.detail) == ("model 'bert' failed: name ''", "ValueError: name '?'")


def test_the_operator_is_told_the_text_of_an_error_once() -> None:
    failure = caught(RuntimeError("cannot parse /m/bert/1/model.onnx"), CPU)
    assert (failure.text, failure.detail) == ("model 'bert' failed: cannot parse model.onnx", "RuntimeError")
    elsewhere = caught(RuntimeError("cannot parse /srv/weights.bin"), CPU)
    assert elsewhere.detail == "RuntimeError: cannot parse /srv/weights.bin"
