from __future__ import annotations

import random
import re
import signal
from dataclasses import replace

import pytest

from mmsup.ipc import exit_codes
from mmsup.ipc.errors import ERROR_CLASSES
from mmsup.supervisor.postmortem.cause import Cause, Evidence, cause_of

GIB = 1 << 30
SERVING = Evidence(worker="bert/2", pid=4121, status=0, signal=0, ready=True)
LOADING = replace(SERVING, ready=False)
KILLED = replace(SERVING, signal=signal.SIGKILL)
SEGFAULT = """Fatal Python error: Segmentation fault

Current thread 0x00007f0000000000 (most recent call first):
  File "/srv/models/bert/2/model.py", line 12 in infer
  File "/usr/lib/mmsup/worker/loop.py", line 80 in _run
"""


@pytest.mark.parametrize(
    ("row", "evidence", "code", "word", "retryable"),
    [
        (
            "F64 ended by another model of its group, by the kernel for memory",
            replace(KILLED, oom_kills=1, in_flight=2, ended_by="big/1, which ran when it ended"),
            "model_restarting",
            "shared",
            True,
        ),
        ("F1 killed while idle", replace(KILLED, in_flight=0), "worker_crashed", "signal SIGKILL", True),
        ("F2 killed with requests", replace(KILLED, in_flight=3), "worker_crashed", "signal SIGKILL", True),
        ("F3 SEGV", replace(SERVING, signal=signal.SIGSEGV), "worker_crashed", "signal SIGSEGV", True),
        ("F3 ABRT", replace(SERVING, signal=signal.SIGABRT), "worker_crashed", "signal SIGABRT", True),
        ("F3 FPE", replace(SERVING, signal=signal.SIGFPE), "worker_crashed", "signal SIGFPE", True),
        ("F3 a real-time signal", replace(SERVING, signal=40), "worker_crashed", "signal SIG40", True),
        ("F3 exit 3", replace(SERVING, status=3), "worker_crashed", "exit 3", True),
        ("F3 exit 0 is a crash too", SERVING, "worker_crashed", "exit 0", True),
        ("F3 137 is no proof of OOM", replace(SERVING, status=137), "worker_crashed", "exit 137", True),
        ("F5", replace(SERVING, signal=signal.SIGBUS), "worker_sigbus", "signal SIGBUS", True),
        (
            "F6 reported",
            replace(LOADING, status=65, load_failed_code="load_failed"),
            "load_failed",
            "load failed",
            False,
        ),
        ("F6 not reported", replace(LOADING, status=exit_codes.LOAD_FAILED), "load_failed", "exit 65", False),
        ("F6 exit", replace(LOADING, status=1), "load_failed", "exit 1", False),
        ("F6 segfault", replace(LOADING, signal=signal.SIGSEGV), "load_failed", "signal SIGSEGV", False),
        ("F6 OOM", replace(LOADING, signal=signal.SIGKILL, oom_kills=1), "does_not_fit", "oom", False),
        (
            "F7",
            replace(LOADING, signal=signal.SIGKILL, condemned_code="load_timeout"),
            "load_timeout",
            "load timeout",
            True,
        ),
        (
            "F7 TERM did",
            replace(LOADING, signal=15, condemned_code="load_timeout"),
            "load_timeout",
            "load timeout",
            True,
        ),
        ("F10", replace(KILLED, condemned_code="worker_hung"), "worker_hung", "hung", True),
        ("F15 alone", replace(KILLED, oom_kills=1, in_flight=1), "worker_oom", "oom", False),
        ("F15 with others", replace(KILLED, oom_kills=1, in_flight=2), "worker_oom", "oom", True),
        ("F15 idle", replace(KILLED, oom_kills=1, in_flight=0), "worker_oom", "oom", True),
        ("F16 its child was killed", replace(SERVING, status=1, oom_kills=1), "worker_oom", "oom", True),
        (
            "F16 and we ended the rest",
            replace(KILLED, oom_kills=1, condemned_code="worker_oom"),
            "worker_oom",
            "oom",
            True,
        ),
        ("no cgroup, seen from outside", replace(KILLED, condemned_code="worker_oom"), "worker_oom", "memory", True),
        ("F19", replace(SERVING, status=exit_codes.DEVICE_LOST), "gpu_fault", "gpu fault", True),
        ("F19 while loading", replace(LOADING, status=exit_codes.DEVICE_LOST), "gpu_fault", "gpu fault", True),
        ("F38", replace(KILLED, condemned_code="bad_worker_reply"), "bad_worker_reply", "bad reply", True),
        ("stopped", replace(SERVING, stop_requested=True), "unavailable", "stopped", True),
        ("stopped, then killed", replace(KILLED, stop_requested=True), "unavailable", "stopped", True),
        ("stopped, crashed", replace(SERVING, status=3, stop_requested=True), "worker_crashed", "exit 3", True),
        ("orphaned", replace(SERVING, status=exit_codes.KEEPER_LOST), "worker_crashed", "exit 71", True),
    ],
)
def test_the_evidence_names_the_cause(row: str, evidence: Evidence, code: str, word: str, retryable: bool) -> None:
    cause = cause_of(evidence)
    assert (cause.code, cause.word, cause.retryable) == (code, word, retryable), row


def test_a_crash_before_the_kill_is_a_crash() -> None:
    condemned = replace(SERVING, signal=signal.SIGSEGV, condemned_code="worker_hung")
    assert cause_of(condemned).word == "signal SIGSEGV"


def test_the_sender_of_a_plain_kill_is_unknown() -> None:
    assert cause_of(KILLED).text == "worker bert/2 was killed by SIGKILL, sender unknown"


def test_an_oom_names_cap_peak_and_advice() -> None:
    evidence = replace(KILLED, oom_kills=1, cap_bytes=4 * GIB, peak_bytes=int(4.1 * GIB), in_flight=2)
    assert cause_of(evidence).detail == (
        "worker bert/2 (pid 4121) was killed by the kernel for memory: cap 4GiB, peak 4.1GiB; "
        "raise memory or lower max_batch_size; 2 in flight"
    )


def test_an_oom_without_a_cap_says_so() -> None:
    assert "no cap of its own;" in cause_of(replace(KILLED, oom_kills=1)).text


def test_operators_see_the_crash_and_the_last_output_and_clients_do_not() -> None:
    tail = tuple(f"line {number} /srv/secret" for number in range(9))
    cause = cause_of(replace(SERVING, signal=signal.SIGSEGV, crash=SEGFAULT, tail=tail))
    assert 'Segmentation fault, File "/srv/models/bert/2/model.py", line 12 in infer' in cause.detail
    assert "line 8" in cause.detail
    assert "line 5" not in cause.detail
    assert cause.text == "worker bert/2 was killed by SIGSEGV"


def test_what_a_worker_reports_of_its_load_is_passed_on() -> None:
    evidence = replace(
        LOADING, status=exit_codes.LOAD_FAILED, load_failed_code="does_not_fit", load_failed_text="no room for weights"
    )
    assert cause_of(evidence).text == "worker bert/2 could not load: no room for weights"


def random_evidence(rng: random.Random) -> Evidence:
    return Evidence(
        worker="m/1",
        pid=rng.randrange(10**6, 10**7),
        status=rng.choice([0, 1, 3, 65, 70, 71, 127, 137, 255]),
        signal=rng.choice([0, 0, *range(1, 65)]),
        ready=rng.random() < 0.5,
        oom_kills=rng.choice([0, 0, 1, 3]),
        cap_bytes=rng.choice([None, 1 << 28]),
        peak_bytes=rng.choice([0, 1 << 28]),
        in_flight=rng.choice([None, 0, 1, 5]),
        load_failed_code=rng.choice(["", "", "load_failed", "does_not_fit"]),
        condemned_code=rng.choice(
            ["", "worker_hung", "load_timeout", "bad_worker_reply", "worker_oom", "worker_crashed"]
        ),
        stop_requested=rng.random() < 0.3,
        crash=rng.choice(["", "\n", SEGFAULT, "nonsense"]),
        tail=rng.choice([(), ("/etc/passwd",)]),
    )


def test_every_evidence_has_a_cause_of_the_catalogue_and_clients_learn_no_internals() -> None:
    rng = random.Random(1)
    codes = {code for family in ERROR_CLASSES for code in family.codes}
    for _ in range(5000):
        evidence = random_evidence(rng)
        cause = cause_of(evidence)
        assert isinstance(cause, Cause)
        assert cause.code in codes
        assert not re.search(rf"{evidence.pid}|/srv|/etc|0x", cause.text), cause
        if cause.word == "oom":
            assert evidence.oom_kills
        if evidence.oom_kills:
            assert cause.word == "oom"


def test_who_shared_a_process_is_said_for_operators_and_nothing_of_others_output_of_a_bystander() -> None:
    culprit = cause_of(replace(KILLED, shared_with=("a/1", "b/1")))
    assert "it shared its process with a/1, b/1" in culprit.detail
    assert "a/1" not in culprit.text
    beside = cause_of(replace(KILLED, ended_by="a/1, which ran when it ended", crash=SEGFAULT, tail=("of a",)))
    assert beside.text == "worker bert/2 shares its process with a/1, which ran when it ended"
    assert "of a" not in beside.detail
    assert "faulthandler" not in beside.detail
