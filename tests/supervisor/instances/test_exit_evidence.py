from __future__ import annotations

import time

import pytest

from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances import exit_evidence
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.linux.cgroup import Cgroup

SPEC = ModelSpec("bert", "2", "/m", "model.py", "custom", "python", memory_bytes=1 << 20)


def tenure(*, ready: bool = True) -> WorkerProcess:
    now_s = time.monotonic()
    return WorkerProcess(Cgroup(()), now_s - 5, ready_s=now_s - 1 if ready else 0.0)


def exited(status: int = 0, signal: int = 0) -> ChildExited:
    return ChildExited("worker.1.1", 4121, status, signal)


def test_a_death_while_serving_is_a_crash_named_by_its_signal() -> None:
    death = exit_evidence.collect(SPEC, tenure(), exited(signal=11), [])
    assert (death.failure.code, death.cause.word) == ("worker_crashed", "signal SIGSEGV")
    assert death.event_fields()["sig"] == 11


def test_status_zero_that_nobody_asked_for_is_a_death() -> None:
    assert exit_evidence.collect(SPEC, tenure(), exited(), []).failure.code == "worker_crashed"


def test_a_death_while_loading_is_a_failed_load() -> None:
    death = exit_evidence.collect(SPEC, tenure(ready=False), exited(signal=11), [])
    assert death.load_failure.of_load
    assert death.load_failure.code == "load_failed"


def test_a_load_that_timed_out_is_named_so_and_not_as_a_kill() -> None:
    life = tenure(ready=False)
    life.load_failure = WorkerFailure("load_timeout", "still loading after 1 s", of_load=True)
    assert exit_evidence.collect(SPEC, life, exited(signal=9), []).cause.word == "load timeout"


def test_what_callers_are_told_names_no_pid_and_no_path() -> None:
    death = exit_evidence.collect(SPEC, tenure(), exited(status=3), ["File /srv/secret.py, line 1"])
    assert "4121" not in death.failure.text
    assert "/srv" not in death.failure.text
    assert "4121" in death.cause.detail
    assert "/srv/secret.py" in death.cause.detail


@pytest.mark.parametrize(
    ("crash", "code", "text"),
    [
        ("Fatal Python error: Segmentation fault\n\nCurrent", "worker_crashed", "it crashed: Segmentation fault"),
        ("Fatal Python error: Bus error\n", "worker_sigbus", "it crashed: Bus error"),
        ("", "worker_crashed", "it crashed: a fatal signal"),
        ("anything a model wrote there", "worker_crashed", "it crashed: a fatal signal"),
    ],
)
def test_first_words_of_a_crash_become_code_and_text(crash: str, code: str, text: str) -> None:
    assert exit_evidence.crash_summary(crash) == (code, text)


def test_a_hung_worker_is_told_to_its_callers_in_the_words_of_a_timeout() -> None:
    said = exit_evidence.failure_for_callers(
        SPEC, WorkerFailure("worker_hung", "a batch has run for 0.6 s; the limit is 0.5 s")
    )
    assert said.text.startswith("Request timeout expired: worker bert/2 ")
