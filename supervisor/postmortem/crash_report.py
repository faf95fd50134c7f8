"""The bundle of one death: everything that was known of it, as one JSON object. Pure.

It is for the operator: it has pids, paths and what the model printed, and never goes to a client. Values of the
environment and of parameters are not in it, nor any byte of a request. The shape is a contract with people's tools;
`format` changes when it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc.memory.status_page import Progress
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.observability.event_log import Event
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.postmortem.cause import Cause, Evidence, signal_name
from mmsup.supervisor.postmortem.in_flight import InFlightSummary
from mmsup.supervisor.postmortem.memory_history import EVERY_S, Sample

Json = dict[str, Any]  # one JSON object

FORMAT: Final = 1
OUTPUT_CHARACTERS: Final = 64 << 10
MAX_REQUESTS: Final = 64
"""Requests told one by one."""
_OMITTED: Final = frozenset({"tail", "story"})
"""Members of an event that stand elsewhere in the bundle."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CrashRecord:
    """What the brain knew when it had read the evidence."""

    time: str
    """Wall clock, for people."""
    spec: ModelSpec
    instance: int
    generation: int
    cause: Cause
    evidence: Evidence
    progress: Progress | None
    """Its status page at the end."""
    ended_ns: int
    is_linked: bool
    """Gateways sent requests to it."""
    lived_s: float
    served_s: float
    in_group: bool
    """Its memory was counted by a control group."""
    memory_samples: Sequence[Sample]
    recent_events: Sequence[Event]
    transitions: Sequence[str]
    next_delay_s: float | None
    given_up: str
    """Why there will be probes only; empty otherwise."""


def crash_report(case: CrashRecord, loss: InFlightSummary, configuration: Json, artefact: Json) -> Json:
    """All of it."""
    spec, evidence = case.spec, case.evidence
    return {
        "format": FORMAT,
        "mmsup": mmsup.__version__,
        "time": case.time,
        "model": spec.name,
        "version": spec.version,
        "instance": case.instance,
        "generation": case.generation,
        "pid": evidence.pid,
        "lived_s": round(case.lived_s, 3),
        "served_s": round(case.served_s, 3),
        "cause": asdict(case.cause),
        "evidence": _evidence(case),
        "stack": _stack(evidence.crash, spec.directory),
        "output": _output(evidence.tail),
        "memory": _memory(case),
        "requests": _requests(case, loss),
        "configuration": configuration,
        "artefact": artefact,
        "restart": {
            "number": case.generation,
            "next_delay_s": case.next_delay_s,
            "given_up": case.given_up,
        },
        "story": [{name: value for name, value in each.items() if name not in _OMITTED} for each in case.recent_events],
        "transitions": list(case.transitions),
    }


def _evidence(case: CrashRecord) -> Json:
    evidence, progress = case.evidence, case.progress
    found: Json = {
        "status": evidence.status,
        "signal": evidence.signal,
        "signal_name": signal_name(evidence.signal) if evidence.signal else "",
        "was_ready": evidence.ready,
        "condemned": {"code": evidence.condemned_code, "text": evidence.condemned_text},
        "load_failed": {"code": evidence.load_failed_code, "text": evidence.load_failed_text},
        # A group is made for one life, so its counter begins at nothing.
        "oom_kills_before": 0,
        "oom_kills_after": evidence.oom_kills if evidence.counts_oom else None,
        "cap_bytes": evidence.cap_bytes,
        "peak_bytes": evidence.peak_bytes or None,
        "hang_limit_s": case.spec.hang_limit_s,
        "load_timeout_s": case.spec.load_timeout_s,
    }
    if progress is not None:
        found |= {
            "activity": progress.activity.name.lower(),
            "activity_for_s": _ago(progress.since_ns, case.ended_ns),
            "last_beat_ago_s": _ago(progress.heartbeat_ns, case.ended_ns),
            "batches": progress.batches,
            "requests": progress.requests,
            "device_bytes": progress.device_bytes,
        }
    return found


def _ago(at_ns: int, now_ns: int) -> float | None:
    return round((now_ns - at_ns) / NS, 3) if at_ns else None


def _stack(text: str, directory: str) -> Json | None:
    if not text.strip():
        return None
    read = stack_trace.parse(text)
    inner, own = read.innermost(), read.model_frame(directory)
    return {
        "fatal": read.fatal,
        "innermost": asdict(inner) if inner else None,
        "in_model": asdict(own) if own else None,
        "threads": len(read.threads),
        "text": text,
    }


def _output(lines: Sequence[str]) -> list[str]:
    """The last lines, as many as fit."""
    kept: list[str] = []
    left = OUTPUT_CHARACTERS
    for line in reversed(lines):
        left -= len(line)
        if left < 0:
            break
        kept.append(line)
    return kept[::-1]


def _memory(case: CrashRecord) -> Json:
    of = "its control group, page cache included" if case.in_group else "its resident set"
    return {"of": of, "every_s": EVERY_S, "samples": [list(each) for each in case.memory_samples]}


def _requests(case: CrashRecord, loss: InFlightSummary) -> Json:
    """`is_complete` False: a gateway had not told in time, and there may have been more."""
    return {
        "in_flight": loss.in_flight,
        "begun": loss.begun,
        "is_complete": loss.is_complete or not case.is_linked,
        "retry_on_crash": case.spec.retry_on_crash,
        "named": [asdict(each) | {"age_s": round(each.age_s, 3)} for each in loss.requests[:MAX_REQUESTS]],
    }
