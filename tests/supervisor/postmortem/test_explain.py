from __future__ import annotations

import random
from typing import Any

import pytest

from mmsup.supervisor.postmortem.explain import (
    MAX_LATER_EVENTS,
    end_of_group,
    explain,
    later_events,
    list_entry,
    memory_decisions,
    no_crash,
)

Json = dict[str, Any]


def bundle(code: str, word: str = "", **parts: Any) -> Json:  # members of a bundle
    made: Json = {
        "number": 4,
        "time": "2026-01-02T03:04:05.000Z",
        "model": "bert",
        "version": "2",
        "instance": 7,
        "generation": 3,
        "pid": 4121,
        "lived_s": 13.0,
        "served_s": 12.0,
        "cause": {"code": code, "word": word},
        "evidence": {"was_ready": True, "signal": 0, "status": 0},
        "output": ["first", "the last line"],
        "requests": {"in_flight": 0, "begun": 0, "is_complete": True, "named": []},
        "restart": {"number": 3, "next_delay_s": 0.0, "given_up": ""},
    }
    evidence = {**made["evidence"], **parts.pop("evidence", {})}
    return {**made, **parts, "evidence": evidence}


def text_of(made: Json, events: list[Json] | None = None, state: str = "ready") -> str:
    return "\n".join(explain(made, events or [], state))


KILLED = {"signal": 9, "signal_name": "SIGKILL"}
FRAME = {"file": "/models/bert/2/model.py", "line": 12, "function": "infer"}
LIBRARY = {"file": "/lib/torch/nn.py", "line": 9, "function": "forward"}


@pytest.mark.parametrize(
    ("row", "made", "sentence", "advice"),
    [
        (
            "F1",
            bundle("worker_crashed", evidence={**KILLED, "oom_kills_after": 0}),
            "It was killed by SIGKILL; the kernel does not say who sent it, and it was not for memory",
            "find out who sends signals here: the server did not.",
        ),
        (
            "F1 without control groups",
            bundle("worker_crashed", evidence={**KILLED, "oom_kills_after": None}),
            "does not say who sent it, and there is no counter of kills for memory here.",
            "the server did not, unless the kernel did for memory",
        ),
        (
            "F3 signal",
            bundle(
                "worker_crashed",
                evidence={"signal": 11, "signal_name": "SIGSEGV"},
                stack={"fatal": "Segmentation fault", "innermost": LIBRARY, "in_model": FRAME},
            ),
            "It was killed by SIGSEGV: Segmentation fault.",
            "look at the frames",
        ),
        (
            "F3 exit",
            bundle("worker_crashed", evidence={"status": 3}),
            "It exited with status 3, which was not requested.",
            "look for an exit in the model's code",
        ),
        (
            "F3 in a load",
            bundle("load_failed", evidence={"was_ready": False, "signal": 6, "signal_name": "SIGABRT"}),
            "It was killed by SIGABRT while it loaded.",
            "fix the model, then `mmsup ctl load bert`",
        ),
        (
            "F5",
            bundle("worker_sigbus", evidence={"signal": 7, "signal_name": "SIGBUS"}),
            "It was killed by SIGBUS.",
            "a tmpfs that is full",
        ),
        (
            "F6",
            bundle("load_failed", evidence={"status": 65, "load_failed": {"text": "no such file: x."}}),
            "Its load failed: no such file: x.",
            "fix the model",
        ),
        (
            "F7",
            bundle("load_timeout", evidence={**KILLED, "load_failed": {"text": "still loading after 1 s"}}),
            "It was killed because its load did not end: still loading after 1 s.",
            "raise `load_timeout` only if",
        ),
        (
            "F10",
            bundle(
                "worker_hung",
                evidence={**KILLED, "condemned": {"text": "a batch has run for 5.1 s"}, "last_beat_ago_s": 5.2},
                stack={"fatal": "", "innermost": FRAME, "in_model": FRAME},
            ),
            "because it hung: a batch has run for 5.1 s; its loop had last come round 5.2s before its end.",
            "if a run may pause that long, raise `hang_limit`",
        ),
        (
            "F15",
            bundle(
                "worker_oom",
                evidence={**KILLED, "oom_kills_after": 1, "cap_bytes": 1 << 28, "peak_bytes": 1 << 28},
            ),
            "the oom_kill counter of its group rose from 0 to 1; its cap is 256MiB, its peak was 256MiB.",
            "raise `memory`",
        ),
        (
            "F15 in a load",
            bundle("does_not_fit", evidence={**KILLED, "was_ready": False, "oom_kills_after": 1}),
            "for memory while it loaded: the oom_kill counter of its group rose from 0 to 1; it has no cap of its own.",
            "serve a smaller artifact",
        ),
        (
            "said that it does not fit",
            bundle("does_not_fit", evidence={"status": 65, "load_failed": {"text": "needs 9GiB"}}),
            "Its load failed: needs 9GiB.",
            "serve a smaller artifact",
        ),
        (
            "F19",
            bundle("gpu_fault", evidence={"status": 70}),
            "It left by itself with status 70: a CUDA error had cost it its context.",
            "Xid",
        ),
        (
            "F38",
            bundle("bad_worker_reply", evidence={**KILLED, "condemned": {"text": "a place outside its grant"}}),
            "It was killed because it broke the protocol: a place outside its grant.",
            "writes to the worker's descriptors",
        ),
    ],
)  # fmt: skip
def test_each_cause_has_its_evidence_and_its_advice(row: str, made: Json, sentence: str, advice: str) -> None:
    text = text_of(made)
    assert sentence in text, row
    assert advice in text, row


def test_the_first_sentence_says_when_which_worker_and_how_long() -> None:
    first = explain(bundle("worker_crashed"), [])[0]
    assert first.endswith(": worker 7 of bert, version 2 (generation 3, pid 4121) died after it had served for 12s.")
    assert "13s after its start, before it served" in explain(bundle("load_failed", served_s=0.0), [])[0]


@pytest.mark.parametrize(
    ("stack", "sentence"),
    [
        ({"innermost": FRAME, "in_model": FRAME}, "It stood in the model: infer, model.py line 12."),
        (
            {"innermost": LIBRARY, "in_model": FRAME},
            "It stood in forward, nn.py line 9, called from the model's infer, model.py line 12.",
        ),
        ({"innermost": LIBRARY, "in_model": None}, "It stood in code: forward, nn.py line 9."),
        (None, "It left no stack."),
    ],
)
def test_the_position_of_a_hung_worker_is_explained(stack: Json | None, sentence: str) -> None:
    assert sentence in text_of(bundle("worker_hung", stack=stack))


@pytest.mark.parametrize(
    ("requests", "sentence"),
    [
        ({"in_flight": 0, "is_complete": True}, "No request was in flight."),
        (
            {"in_flight": 0, "is_complete": False},
            "No request was in flight. A gateway has not reported, so there may have been more.",
        ),
        (
            {"in_flight": 1, "begun": 1, "is_complete": True, "named": [{"id": "", "begun": True}]},
            "1 request was in flight: 1 had begun and was answered with worker_crashed.",
        ),
        (
            {
                "in_flight": 3,
                "begun": 1,
                "is_complete": True,
                "named": [{"id": "r1", "begun": True}, {"id": "r2", "begun": False}],
            },
            "1 had begun (r1) and was answered with worker_crashed; 2 had not begun and went to the next worker.",
        ),
        (
            {"in_flight": 2, "begun": 2, "is_complete": True, "retry_on_crash": True},
            "2 had begun and were run once more, alone, where that could be, else answered with worker_crashed.",
        ),
        (
            {
                "in_flight": 4,
                "begun": 2,
                "is_complete": True,
                "named": [
                    {"id": "left", "begun": True, "abandoned": True},
                    {"id": "r1", "begun": True, "abandoned": False},
                    {"id": "", "begun": False, "abandoned": True},
                    {"id": "", "begun": False, "abandoned": False},
                ],
            },
            "1 had begun (r1) and was answered with worker_crashed; 1 had not begun and went to the next worker; nob",
        ),
        (
            {
                "in_flight": 9,
                "begun": 9,
                "is_complete": True,
                "named": [{"id": f"r{n}", "begun": True} for n in range(9)],
            },
            "(r0, r1, r2, r3, r4, and 4 more)",
        ),
    ],
)
def test_requests_in_flight_are_explained_with_their_outcome(requests: Json, sentence: str) -> None:
    assert sentence in text_of(bundle("worker_crashed", requests=requests))


@pytest.mark.parametrize("code", ["worker_oom", "worker_hung", "bad_worker_reply"])
def test_a_code_that_is_never_retried_is_not_explained_as_retried(code: str) -> None:
    requests = {"in_flight": 1, "begun": 1, "is_complete": True, "retry_on_crash": True}
    assert f"1 had begun and was answered with {code}." in text_of(bundle(code, requests=requests))


def test_a_request_with_an_invalid_reply_is_explained_although_it_was_not_in_flight() -> None:
    text = text_of(bundle("bad_worker_reply"))
    assert "The request that it answered so got bad_worker_reply; no other was in flight." in text


def test_without_a_next_worker_none_is_named() -> None:
    requests = {"in_flight": 1, "begun": 0, "is_complete": True}
    made = bundle("worker_crashed", requests=requests, restart={"next_delay_s": None, "given_up": "6 deaths"})
    assert "1 had not begun and went to another worker, if there was one." in text_of(made)


def event(name: str, generation: int = 4, text: str = "", time: str = "2026-01-02T03:04:05.400Z") -> Json:
    return {"event": name, "instance": 7, "generation": generation, "text": text, "time": time}


@pytest.mark.parametrize(
    ("restart", "events", "sentence"),
    [
        (
            {"next_delay_s": 0.0},
            [event("worker_spawn"), event("worker_ready")],
            "It was started again at once, and served again 0.4s after the death.",
        ),
        (
            {"next_delay_s": 2.0},
            [event("load_failed", text="no file")],
            "It was started again after 2.0s; the next thing on record is load_failed: no file.",
        ),
        ({"next_delay_s": 0.0}, [], "It was started again at once; how that went is not on record."),
        (
            {"next_delay_s": None, "given_up": "6 deaths in 60 s"},
            [],
            "It was given up after that: 6 deaths in 60 s; it is tried again from time to time",
        ),
        (
            {"next_delay_s": None, "given_up": "6 deaths in 60 s"},
            [event("worker_ready")],
            "or by `mmsup ctl load`. It served again 0.4s after the death.",
        ),
    ],
)
def test_what_followed_is_explained(restart: Json, events: list[Json], sentence: str) -> None:
    assert sentence in text_of(bundle("worker_crashed", restart=restart), events)


@pytest.mark.parametrize(
    ("served_s", "samples", "sentence"),
    [
        (40.0, [[30.0, 10 << 20, 0], [0.1, 190 << 20, 0]], "Its memory rose from 10MiB to 190MiB in the last 30s."),
        (40.0, [[30.0, 10 << 20, 0], [0.1, 11 << 20, 0]], "Its memory was 11MiB at the last sample."),
        (12.0, [[13.0, 10 << 20, 0], [9.0, 180 << 20, 0], [0.1, 190 << 20, 0]], "Its memory was 190MiB at the last"),
        (0.05, [[13.0, 10 << 20, 0], [0.1, 190 << 20, 0]], "Its memory was 190MiB at the last sample."),
        (0.0, [[13.0, 10 << 20, 0], [0.1, 190 << 20, 0]], "Its memory rose from 10MiB to 190MiB while loading."),
    ],
)
def test_the_memory_history_becomes_a_sentence(served_s: float, samples: list[Any], sentence: str) -> None:
    assert sentence in text_of(bundle("worker_oom", served_s=served_s, memory={"samples": samples}))


@pytest.mark.parametrize("code", ["worker_hung", "load_timeout", "worker_crashed"])
def test_the_advice_names_frames_only_where_they_are_shown(code: str) -> None:
    evidence = {"signal": 11, "signal_name": "SIGSEGV"}
    assert "look at the frames above" in text_of(bundle(code, evidence=evidence, stack={"innermost": FRAME}))
    text = text_of(bundle(code, evidence=evidence))
    assert "frames" not in text
    assert "look at the last output (`mmsup ctl logs bert`)" in text


def test_a_single_memory_sample_has_no_sentence() -> None:
    assert "memory was" not in text_of(bundle("worker_crashed", memory={"samples": [[1.0, 5, 0]]}))


def test_the_last_line_is_cut_and_missing_output_explained() -> None:
    assert "It printed last: the last line" in text_of(bundle("worker_crashed"))
    assert "x…" in text_of(bundle("worker_crashed", output=["x" * 1000, "  "]))
    assert "It had printed nothing." in text_of(bundle("worker_crashed", output=["", " "]))


def test_later_events_are_those_of_later_workers_of_the_same_instance() -> None:
    events = [
        event("worker_spawn", generation=3),
        event("worker_spawn"),
        {**event("worker_spawn"), "instance": 8},
        {"event": "model_loaded", "instance": None, "generation": None},
    ]
    assert later_events(bundle("worker_crashed"), events) == [events[1]]
    assert len(later_events(bundle("worker_crashed"), [event("backoff")] * 100)) == MAX_LATER_EVENTS


def test_without_a_crash_the_state_of_the_model_is_explained() -> None:
    assert no_crash("bert", "ready", "") == [
        "No worker of bert has died, as far as is on record.",
        "The model is ready now.",
    ]
    assert no_crash("bert", "failed", "no file")[1] == "The model is failed now: no file."


def test_the_last_end_of_a_shared_process_is_told() -> None:
    ends = [
        {**event("worker_exit"), "time": f"2026-01-02T03:04:0{second}.000Z", "cause": cause, "text": f"end {second}"}
        for second, cause in ((1, "shared"), (2, "shared"), (3, "exit 3"))
    ]
    (sentence,) = end_of_group(ends)
    assert sentence.startswith("The process of its group ended at ")
    assert sentence.endswith(": end 2.")
    assert end_of_group(ends[2:]) == []


def test_a_list_entry_names_the_crash() -> None:
    assert list_entry(bundle("worker_crashed", "exit 3")) == {
        "number": 4,
        "time": "2026-01-02T03:04:05.000Z",
        "version": "2",
        "instance": 7,
        "generation": 3,
        "cause": "exit 3",
    }


def test_a_report_of_another_version_is_explained_as_far_as_possible() -> None:
    whole = bundle("worker_oom", memory={"samples": [[1.0, 5, 0]]}, stack={"innermost": FRAME})
    rng = random.Random(3)
    for _ in range(500):
        some = {name: value for name, value in whole.items() if rng.random() < 0.6}
        for name in [name for name in some if rng.random() < 0.1]:
            some[name] = None
        assert explain(some, [])
        assert list_entry(some)
        assert later_events(some, [event("worker_ready")]) is not None


def test_the_last_decision_about_memory_is_told_with_its_figures() -> None:
    refused = {"event": "load_refused", "time": "T2", "text": "it needs 2GiB of host memory, and 1MiB are free; unload"}
    events = [{"event": "memory_overbooked", "time": "T1", "text": "x"}, refused, {"event": "load_failed", "text": "y"}]
    assert memory_decisions(events) == [
        "A load of it was refused for memory at T2: it needs 2GiB of host memory, and 1MiB are free; unload."
    ]
    assert memory_decisions(events[:1]) == ["A load of it was admitted although memory may not hold it at T1: x."]
    assert memory_decisions(events[2:]) == []


def test_both_sides_of_an_eviction_are_told() -> None:
    events: list[Json] = [
        {"event": "model_asleep", "time": "T1", "reason": "ttl", "text": "no"},
        {"event": "model_asleep", "time": "T2", "reason": "evicted", "text": "for a"},
        {"event": "room_made", "time": "T3", "text": "b went"},
        {"event": "model_asleep", "time": "T4", "reason": "evicted", "text": "for c"},
    ]
    assert memory_decisions(events) == [
        "Room was made for a load of it at T3: b went.", "It was put to sleep at T4: for c."
    ]  # fmt: skip
    assert memory_decisions(events[:1]) == []


def test_the_time_of_a_memory_decision_is_told_as_that_of_a_death() -> None:
    (sentence,) = memory_decisions([{"event": "room_made", "time": "2026-01-02T03:04:05.000Z", "text": "b went"}])
    told = explain(bundle("crash"), [])[0].partition(": ")[0]
    assert sentence == f"Room was made for a load of it at {told}: b went."
