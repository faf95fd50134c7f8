from __future__ import annotations

import time

import pytest

from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances import worker_exit
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.linux.cgroup import Cgroup

SPEC = ModelSpec("bert", "2", "/m", "model.py", "custom", "python", memory_bytes=1 << 20)


def worker(*, ready: bool = True) -> WorkerProcess:
    now_s = time.monotonic()
    return WorkerProcess(Cgroup(()), now_s - 5, ready_s=now_s - 1 if ready else 0.0)


def exited(status: int = 0, signal: int = 0) -> ChildExited:
    return ChildExited("worker.1.1", 4121, status, signal)


def test_an_exit_while_serving_is_a_crash_named_by_its_signal() -> None:
    found = worker_exit.collect(SPEC, (1, 1), worker(), exited(signal=11), None)
    assert (found.failure.code, found.cause.word) == ("worker_crashed", "signal SIGSEGV")
    assert found.event_fields()["sig"] == 11


def test_status_zero_that_was_not_requested_is_a_crash() -> None:
    assert worker_exit.collect(SPEC, (1, 1), worker(), exited(), None).failure.code == "worker_crashed"


def test_an_exit_while_loading_is_a_failed_load() -> None:
    found = worker_exit.collect(SPEC, (1, 1), worker(ready=False), exited(signal=11), None)
    assert found.failure.code == "load_failed"


def test_a_load_that_timed_out_is_named_so_and_not_as_a_kill() -> None:
    loading = worker(ready=False)
    loading.termination.load_failure = WorkerFailure("load_timeout", "still loading after 1 s", of_load=True)
    assert worker_exit.collect(SPEC, (1, 1), loading, exited(signal=9), None).cause.word == "load timeout"


def test_the_answer_of_callers_names_no_pid_and_no_path() -> None:
    found = worker_exit.collect(SPEC, (1, 1), worker(), exited(status=3), None).with_details(
        None, ["File /srv/secret.py, line 1"]
    )
    assert "4121" not in found.failure.text
    assert "/srv" not in found.failure.text
    assert "4121" in found.cause.detail
    assert "/srv/secret.py" in found.cause.detail


@pytest.mark.parametrize(
    ("crash", "code", "text"),
    [
        ("Fatal Python error: Segmentation fault\n\nCurrent", "worker_crashed", "it crashed: Segmentation fault"),
        ("Fatal Python error: Bus error\n", "worker_sigbus", "it crashed: Bus error"),
        ("", "worker_crashed", "it crashed: a fatal signal"),
        ("anything a model wrote there", "worker_crashed", "it crashed: a fatal signal"),
    ],
)
def test_the_start_of_a_crash_dump_becomes_code_and_text(crash: str, code: str, text: str) -> None:
    assert worker_exit.crash_summary(crash) == (code, text)


def test_the_callers_of_a_hung_worker_get_the_text_of_a_timeout() -> None:
    answer = worker_exit.failure_for_callers(
        SPEC, WorkerFailure("worker_hung", "a batch has run for 0.6 s; the limit is 0.5 s")
    )
    assert answer.text.startswith("Request timeout expired: worker bert/2 ")


@pytest.mark.parametrize(
    ("code", "answered"),
    [
        ("too_many_files", "too_many_files"),
        ("insufficient_gpu_memory", "insufficient_gpu_memory"),
        ("load_failed", "model_failed"),
    ],
)
def test_requests_to_a_model_whose_load_waits_for_room_get_that_reason(code: str, answered: str) -> None:
    assert WorkerFailure(code, "no room", of_load=True).request_code == answered
