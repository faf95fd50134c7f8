"""Explains a crash report in sentences: what happened, the evidence, affected requests, what followed, advice. Pure.

`explain` reads a report as it is on disk, perhaps of another version of mmsup: if a member is missing, its sentence is
left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, cast

from mmsup.ipc.poison_policy import RETRYABLE_CAUSES
from mmsup.supervisor.config.units import age, size_text
from mmsup.supervisor.postmortem import stack_trace

Json = Mapping[str, Any]  # one JSON object

IDS_SHOWN: Final = 5
MAX_LATER_EVENTS: Final = 20
LINE_CHARACTERS: Final = 200
MEMORY_RISE: Final = 1.5
"""The factor by which memory must have grown to be called rising."""
_REFUSED, _OVERBOOKED, _ROOM_MADE, _ASLEEP = "load_refused", "memory_overbooked", "room_made", "model_asleep"
_MEMORY_DECISIONS: Final = {
    _REFUSED: "A load of it was refused for memory",
    _OVERBOOKED: "A load of it was admitted although memory may not hold it",
    _ROOM_MADE: "Room was made for a load of it",
    _ASLEEP: "It was put to sleep",
}
_OUTCOMES: Final = frozenset({"worker_ready", "load_failed", "load_timeout", "crash_loop"})


def explain(report: Json, later: Sequence[Json], state: str = "", reason: str = "") -> list[str]:
    """The sentences. `later`: events of the same instance after this exit, oldest first; `state` and `reason`: the
    model's, now."""
    parts = (
        _what(report),
        _cause(report),
        _stack(report),
        _memory(report),
        _output(report),
        _requests(report),
        _restart(report, later),
        f"The model is {state} now{f': {reason}' if reason else ''}." if state else "",
        _advice(report),
    )
    return [each for each in parts if each]


def no_crash(model: str, state: str, reason: str) -> list[str]:
    sentences = [f"No worker of {model} has died, as far as is on record."]
    if state:
        sentences.append(f"The model is {state} now{f': {reason}' if reason else ''}.")
    return sentences


def end_of_group(events: Sequence[Json]) -> list[str]:
    """The last time that the process ended because of another model of its group, if it is among these events."""
    ends = (each for each in reversed(events) if (each.get("event"), each.get("cause")) == ("worker_exit", "shared"))
    return [f"The process of its group ended at {_clock(each.get('time'))}: {each.get('text')}." for each in ends][:1]


def memory_decisions(events: Sequence[Json]) -> list[str]:
    """The last time that a load was refused for memory or may not have fitted, the last time that others made room for
    it, and the last time that it did so for others, as far as they are among these events."""
    found = [
        next((each for each in reversed(events) if each.get("event") in kinds and _is_for_memory(each)), None)
        for kinds in ((_REFUSED, _OVERBOOKED), (_ROOM_MADE,), (_ASLEEP,))
    ]
    return [
        f"{_MEMORY_DECISIONS[str(each['event'])]} at {_clock(each.get('time'))}: {str(each.get('text')).rstrip('.')}."
        for each in sorted((each for each in found if each is not None), key=lambda each: str(each.get("time")))
    ]


def _is_for_memory(event: Json) -> bool:
    return event.get("event") != _ASLEEP or event.get("reason") == "evicted"


def list_entry(report: Json) -> Json:
    named = {name: report.get(name) for name in ("number", "time", "version", "instance", "generation")}
    return {**named, "cause": _part(report, "cause").get("word")}


def later_events(report: Json, events: Sequence[Json]) -> list[Json]:
    """Of a model's events, the first of later workers of the same instance."""
    instance, generation = report.get("instance"), report.get("generation") or 0
    later = [each for each in events if each.get("instance") == instance and (each.get("generation") or 0) > generation]
    return later[:MAX_LATER_EVENTS]


def _what(report: Json) -> str:
    served, lived = report.get("served_s") or 0, report.get("lived_s") or 0
    how_long = f"after it had served for {age(served)}" if served else f"{age(lived)} after its start, before it served"
    who = f"worker {report.get('instance')} of {report.get('model')}, version {report.get('version')}"
    process = f"generation {report.get('generation')}, pid {report.get('pid')}"
    return f"{_clock(report.get('time'))}: {who} ({process}) died {how_long}."


def _clock(value: object) -> str:
    try:
        return datetime.fromisoformat(str(value)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(value)


# The cause, each with the evidence for it.


def _cause(report: Json) -> str:
    explain_cause = _CAUSES.get(str(_part(report, "cause").get("code")), _crash)
    return explain_cause({**_part(report, "evidence"), "fatal": _part(report, "stack").get("fatal")})


def _oom(evidence: Json) -> str:
    if not evidence.get("oom_kills_after"):
        return f"It was ended for memory: {_text(evidence, 'condemned')}."
    cap, peak = evidence.get("cap_bytes"), evidence.get("peak_bytes")
    sizes = [f"its cap is {size_text(cap)}" if cap else "it has no cap of its own"]
    sizes += [f"its peak was {size_text(peak)}"] if peak else []
    counts = f"rose from {evidence.get('oom_kills_before', 0)} to {evidence['oom_kills_after']}"
    loading = "" if evidence.get("was_ready") else " while it loaded"
    return f"The kernel killed it for memory{loading}: the oom_kill counter of its group {counts}; {', '.join(sizes)}."


def _hung(evidence: Json) -> str:
    beat = evidence.get("last_beat_ago_s")
    last = f"; its loop had last come round {age(beat)} before its end" if isinstance(beat, int | float) else ""
    return f"It was killed because it hung: {_text(evidence, 'condemned')}{last}."


def _load_timeout(evidence: Json) -> str:
    return f"It was killed because its load did not end: {_text(evidence, 'load_failed', 'condemned')}."


def _load_failed(evidence: Json) -> str:
    if not _part(evidence, "load_failed").get("text"):
        return _crash(evidence)
    return f"Its load failed: {_text(evidence, 'load_failed')}."


def _bad_reply(evidence: Json) -> str:
    return f"It was killed because it broke the protocol: {_text(evidence, 'condemned')}."


def _gpu_fault(evidence: Json) -> str:
    return f"It left by itself with status {evidence.get('status')}: a CUDA error had cost it its context."


def _crash(evidence: Json) -> str:
    if _part(evidence, "move_failed").get("text") and not evidence.get("signal"):
        return f"It ended by itself: {_text(evidence, 'move_failed')}."
    loading = "" if evidence.get("was_ready") else " while it loaded"
    if not evidence.get("signal"):
        return f"It exited with status {evidence.get('status')}{loading}, which was not requested."
    fatal = evidence.get("fatal")
    what = f"It was killed by {evidence.get('signal_name')}{loading}"
    if fatal:
        return f"{what}: {fatal}."
    if evidence.get("signal_name") not in ("SIGKILL", "SIGTERM"):
        return f"{what}."
    if evidence.get("oom_kills_after") is None:
        return f"{what}; the kernel does not say who sent it, and there is no counter of kills for memory here."
    return f"{what}; the kernel does not say who sent it, and it was not for memory: its counter had not risen."


_CAUSES: Final[dict[str, Callable[[Json], str]]] = {
    "worker_oom": _oom,
    "does_not_fit": lambda evidence: (_oom if evidence.get("oom_kills_after") else _load_failed)(evidence),
    "worker_hung": _hung,
    "load_timeout": _load_timeout,
    "load_failed": _load_failed,
    "config_mismatch": _load_failed,
    "bad_worker_reply": _bad_reply,
    "gpu_fault": _gpu_fault,
}


# What else is known.


def _stack(report: Json) -> str:
    stack = _part(report, "stack")
    inner, own = _part(stack, "innermost"), _part(stack, "in_model")
    if not inner:
        return "It left no stack." if _is_hang(report) else ""
    if own and own != inner:
        return f"It stood in {_frame(inner)}, called from the model's {_frame(own)}."
    return f"It stood in {'the model' if own else 'code'}: {_frame(inner)}."


def _is_hang(report: Json) -> bool:
    return _part(report, "cause").get("code") in ("worker_hung", "load_timeout")


def _frame(frame: Json) -> str:
    return f"{frame.get('function')}, {os.path.basename(str(frame.get('file')))} line {frame.get('line')}"


def _memory(report: Json) -> str:
    samples = [each for each in _part(report, "memory").get("samples") or () if isinstance(each, list)]
    if len(samples) < 2:
        return ""
    served_s = report.get("served_s") or 0
    if served_s:  # a load raises it in any case
        samples = [each for each in samples if each[0] <= served_s] or samples[-1:]
    (first_ago, first, *_), (_, last, *_) = samples[0], samples[-1]
    if first and last > first * MEMORY_RISE:
        when = f"in the last {age(first_ago)}" if served_s else "while loading"
        return f"Its memory rose from {size_text(first)} to {size_text(last)} {when}."
    return f"Its memory was {size_text(last)} at the last sample."


def _output(report: Json) -> str:
    lines = [str(each) for each in report.get("output") or () if str(each).strip()]
    if not lines:
        return "It had printed nothing."
    last = stack_trace.last_words(lines).strip()
    if not last:
        return "It had printed nothing but stacks of its threads."
    return f"It printed last: {last[:LINE_CHARACTERS]}{'…' if len(last) > LINE_CHARACTERS else ''}"


def _requests(report: Json) -> str:
    requests = _part(report, "requests")
    if not requests:
        return ""
    count, code = requests.get("in_flight") or 0, _part(report, "cause").get("code")
    more = "" if requests.get("is_complete") else " A gateway has not reported, so there may have been more."
    if not count and code == "bad_worker_reply":  # it was answered before its worker was condemned
        return f"The request that it answered so got {code}; no other was in flight.{more}"
    if not count:
        return f"No request was in flight.{more}"
    left = [bool(each.get("begun")) for each in requests.get("named") or () if each.get("abandoned")]
    begun = (requests.get("begun") or 0) - sum(left)
    waiting = count - begun - len(left)
    parts = []
    if begun:
        parts.append(f"{begun} had begun{_ids(requests)} and {_was(begun)} {_answer(requests, code)}")
    if waiting:
        given_up = _part(report, "restart").get("given_up")
        where = "another worker, if there was one" if given_up else "the next worker"
        parts.append(f"{waiting} had not begun and went to {where}")
    if left:
        parts.append(f"nobody waited for {len(left)} any more")
    return f"{count} {'request' if count == 1 else 'requests'} {_was(count)} in flight: {'; '.join(parts)}.{more}"


def _answer(requests: Json, code: object) -> str:
    if requests.get("retry_on_crash") and code in RETRYABLE_CAUSES:
        return f"run once more, alone, where that could be, else answered with {code}"
    return f"answered with {code}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


def _ids(requests: Json) -> str:
    named = [each for each in requests.get("named") or () if not each.get("abandoned")]
    ids = [str(each["id"]) for each in named if each.get("begun") and each.get("id")]
    more = f", and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return f" ({', '.join(ids[:IDS_SHOWN])}{more})" if ids else ""


def _restart(report: Json, events: Sequence[Json]) -> str:
    delay = _part(report, "restart").get("next_delay_s")
    given_up = _part(report, "restart").get("given_up")
    if given_up:
        again = (
            "" if "no try before" in str(given_up) else "; it is tried again from time to time, or by `mmsup ctl load`"
        )
        begin = f"It was given up after that: {given_up}{again}."
    elif isinstance(delay, int | float):
        begin = f"It was started again {'at once' if delay <= 0 else f'after {age(delay)}'}"
    else:
        return ""
    outcome = next((each for each in events if each.get("event") in _OUTCOMES), None)
    if outcome is None:
        return begin if given_up else f"{begin}; how that went is not on record."
    if outcome["event"] == "worker_ready":
        took = _seconds(report.get("time"), outcome.get("time"))
        served = f"served again{f' {age(took)} after the death' if took is not None else ''}"
        return f"{begin} It {served}." if given_up else f"{begin}, and {served}."
    return f"{begin.rstrip('.')}; the next thing on record is {outcome['event']}: {outcome.get('text')}."


def _seconds(earlier: object, later: object) -> float | None:
    try:
        return (datetime.fromisoformat(str(later)) - datetime.fromisoformat(str(earlier))).total_seconds()
    except ValueError:
        return None


_ADVICE: Final = {
    "worker_oom": "raise `memory`, lower max_batch_size, or look for a leak in the memory samples of the report",
    "does_not_fit": "raise `memory`, or serve a smaller artifact: it needs more than its cap before it serves",
    "worker_hung": "look at FRAMES; if a run may pause that long, raise `hang_limit`; if it may compute that long, "
    "`deadline`; for a first run, `load_timeout`",
    "load_timeout": "look at FRAMES; raise `load_timeout` only if a load may really take that long",
    "config_mismatch": "make the configuration and the file agree, then `mmsup ctl load MODEL`",
    "load_failed": "look at the last output (`mmsup ctl logs MODEL`), fix the model, then `mmsup ctl load MODEL`",
    "worker_sigbus": "look for a mapped file that was cut short, or a tmpfs that is full",
    "bad_worker_reply": "look at who writes to the worker's descriptors; the model runs in that process",
    "gpu_fault": "look at the kernel's log for Xid errors; if they come again the device is broken",
    "worker_crashed": "look at FRAMES: the fault is in the model or one of its libraries",
}
_ADVICE_OF_EXIT: Final = "look for an exit in the model's code: a model must not end its process"
_ADVICE_OF_KILL: Final = "find out who sends signals here: the server did not"
_UNCOUNTED: Final = ", unless the kernel did for memory (`dmesg`)"


def _advice(report: Json) -> str:
    code, evidence = str(_part(report, "cause").get("code")), _part(report, "evidence")
    advice = _ADVICE.get(code, "")
    if code == "worker_crashed" and not evidence.get("signal"):
        advice = _ADVICE_OF_EXIT
    elif code == "worker_crashed" and evidence.get("signal_name") in ("SIGKILL", "SIGTERM"):
        advice = _ADVICE_OF_KILL + (_UNCOUNTED if evidence.get("oom_kills_after") is None else "")
    frames = "frames above" if _part(_part(report, "stack"), "innermost") else "last output (`mmsup ctl logs MODEL`)"
    advice = advice.replace("FRAMES", f"the {frames}")
    return f"What to do: {advice}.".replace("MODEL", str(report.get("model"))) if advice else ""


def _text(evidence: Json, *names: str) -> str:
    """The first recorded reason among these members."""
    reason = next((text for name in names if (text := str(_part(evidence, name).get("text") or ""))), "")
    return reason.rstrip(".") or "the reason is not on record"


def _part(of: Json, name: str) -> Json:
    part = of.get(name)
    return cast("Json", part) if isinstance(part, Mapping) else {}
