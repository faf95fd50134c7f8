from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import Any

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.ipc.messages.gateway_control import InFlight
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.postmortem.cause import Evidence, cause_of
from mmsup.supervisor.postmortem.crash_report import MAX_REQUESTS, OUTPUT_CHARACTERS, CrashRecord, crash_report
from mmsup.supervisor.postmortem.in_flight import InFlightSummary

SPEC = ModelSpec("bert", "2", "/models/bert/2", "model.py", "custom", "python")
EVIDENCE = Evidence(worker="bert/2", pid=4121, status=0, signal=signal.SIGSEGV, ready=True, cap_bytes=1 << 30)
CASE = CrashRecord(
    time="2026-01-02T03:04:05.678Z",
    spec=SPEC,
    instance=7,
    generation=3,
    cause=cause_of(EVIDENCE),
    evidence=EVIDENCE,
    progress=Progress(Activity.BUSY, 8_000_000_000, 9_500_000_000, 4, 9, 0),
    ended_ns=10_000_000_000,
    is_linked=True,
    lived_s=12.3456,
    served_s=11.0,
    in_group=True,
    memory_samples=[(1.0, 5, 0), (0.0, 6, 0)],
    recent_events=[{"event": "worker_exit", "tail": ["secret of another life"], "text": "died"}],
    transitions=["BecameReady: warming -> ready"],
    next_delay_s=0.5,
    given_up="",
)
NOBODY = InFlightSummary(0, 0, (), is_complete=True)


def made(case: CrashRecord = CASE, loss: InFlightSummary = NOBODY) -> dict[str, Any]:
    return crash_report(case, loss, {"sha256": "c"}, {"sha256": "a"})


def test_a_bundle_is_json_and_has_every_part() -> None:
    whole = made()
    assert json.loads(json.dumps(whole)) == whole
    assert {
        "format", "mmsup", "time", "model", "version", "instance", "generation", "pid", "lived_s", "served_s", "cause",
        "evidence", "stack", "output", "memory", "requests", "configuration", "artefact", "restart", "story",
        "transitions",
    } == set(whole)  # fmt: skip


def test_the_evidence_says_what_the_page_said_before_the_end() -> None:
    evidence = made()["evidence"]
    assert (evidence["activity"], evidence["activity_for_s"], evidence["last_beat_ago_s"]) == ("busy", 2.0, 0.5)
    assert (evidence["signal_name"], evidence["cap_bytes"], evidence["peak_bytes"]) == ("SIGSEGV", 1 << 30, None)
    assert "activity" not in made(replace(CASE, progress=None))["evidence"]


def test_the_stack_has_its_own_place_and_names_the_models_frame() -> None:
    assert made()["stack"] is None
    frame = '  File "/models/bert/2/model.py", line 3 in f\n'
    text = f"Fatal Python error: Aborted\n\nStack (most recent call first):\n{frame}"
    stack = made(replace(CASE, evidence=replace(EVIDENCE, crash=text)))["stack"]
    assert (stack["fatal"], stack["in_model"]["line"], stack["text"]) == ("Aborted", 3, text)


def test_requests_are_named_up_to_a_bound_and_it_says_whether_all_told() -> None:
    requests = tuple(
        InFlight(str(number), begun=number == 0, abandoned=False, age_s=0.12345) for number in range(MAX_REQUESTS + 5)
    )
    told = made(loss=InFlightSummary(100, 1, requests, is_complete=False))["requests"]
    assert (told["in_flight"], told["begun"], told["is_complete"], len(told["named"])) == (100, 1, False, MAX_REQUESTS)
    assert told["named"][0] == {"id": "0", "begun": True, "abandoned": False, "age_s": 0.123}


def test_a_life_that_no_gateway_knew_had_nothing_in_flight() -> None:
    assert made(replace(CASE, is_linked=False), replace(NOBODY, is_complete=False))["requests"]["is_complete"]


def test_the_output_is_the_last_that_fits() -> None:
    lines = tuple(f"{number:04d}" + "x" * 1996 for number in range(100))
    output = made(replace(CASE, evidence=replace(EVIDENCE, tail=lines)))["output"]
    assert output == list(lines[-len(output) :])
    assert 0 < sum(map(len, output)) <= OUTPUT_CHARACTERS


def test_the_story_does_not_repeat_the_output_of_other_lives() -> None:
    assert made()["story"] == [{"event": "worker_exit", "text": "died"}]
