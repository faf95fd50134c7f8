"""The crash report of one worker: everything that is known of its exit, as one JSON object. Pure.

It is for operators and never goes to a client: it has pids, paths and what the model printed. It has no values of the
environment or of parameters, and no byte of a request. Its shape is a contract with other tools; `format` changes when
it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc.memory.status_page import Progress
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.stray_signals import signal_name
from mmsup.supervisor.observability.event_log import Event
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.postmortem.cause import Cause, Evidence
from mmsup.supervisor.postmortem.in_flight import InFlightSummary
from mmsup.supervisor.postmortem.memory_history import EVERY_S, Sample

Json = dict[str, Any]  # one JSON object

FORMAT: Final = 1
OUTPUT_CHARACTERS: Final = 64 << 10
MAX_REQUESTS: Final = 64
"""Requests listed one by one."""
_OMITTED: Final = frozenset({"tail", "story"})
"""Members of an event that are elsewhere in the report."""
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CrashRecord:
    time: str
    """Wall clock, as text."""
    spec: ModelSpec
    instance: int
    generation: int
    cause: Cause
    evidence: Evidence
    progress: Progress | None
    """The status page at the end."""
    ended_ns: int
    is_linked: bool
    """Gateways routed to it."""
    lived_s: float
    served_s: float
    in_group: bool
    """Its memory was measured by a control group."""
    memory_samples: Sequence[Sample]
    recent_events: Sequence[Event]
    transitions: Sequence[str]
    next_delay_s: float | None
    given_up: str
    """Why the model was given up; empty if it was not."""


def crash_report(record: CrashRecord, in_flight: InFlightSummary, configuration: Json, artefact: Json) -> Json:
    spec, evidence, events = record.spec, record.evidence, record.recent_events
    return {
        "format": FORMAT,
        "mmsup": mmsup.__version__,
        "time": record.time,
        "model": spec.name,
        "version": spec.version,
        "instance": record.instance,
        "generation": record.generation,
        "pid": evidence.pid,
        "lived_s": round(record.lived_s, 3),
        "served_s": round(record.served_s, 3),
        "cause": asdict(record.cause),
        "evidence": _evidence(record),
        "stack": _stack(evidence.crash, spec.directory),
        "output": _output(evidence.tail),
        "memory": _memory(record),
        "requests": _requests(record, in_flight),
        "configuration": configuration,
        "artefact": artefact,
        "restart": {"number": record.generation, "next_delay_s": record.next_delay_s, "given_up": record.given_up},
        "story": [{name: value for name, value in each.items() if name not in _OMITTED} for each in events],
        "transitions": list(record.transitions),
    }


def _evidence(record: CrashRecord) -> Json:
    evidence, progress = record.evidence, record.progress
    found: Json = {
        "status": evidence.status,
        "signal": evidence.signal,
        "signal_name": signal_name(evidence.signal) if evidence.signal else "",
        "was_ready": evidence.ready,
        "condemned": {"code": evidence.condemned_code, "text": evidence.condemned_text},
        "move_failed": {"text": evidence.move_failed_text},
        "load_failed": {"code": evidence.load_failed_code, "text": evidence.load_failed_text},
        # A control group is created for one worker, so its counter starts at 0.
        "oom_kills_before": 0,
        "oom_kills_after": evidence.oom_kills if evidence.counts_oom else None,
        "cap_bytes": evidence.cap_bytes,
        "peak_bytes": evidence.peak_bytes or None,
        "hang_limit_s": record.spec.hang_limit_s,
        "load_timeout_s": record.spec.load_timeout_s,
    }
    if progress is not None:
        found |= {
            "activity": progress.activity.name.lower(),
            "activity_for_s": _ago(progress.since_ns, record.ended_ns),
            "last_beat_ago_s": _ago(progress.heartbeat_ns, record.ended_ns),
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
    """As many of the last lines as fit."""
    kept: list[str] = []
    left = OUTPUT_CHARACTERS
    for line in reversed(lines):
        left -= len(line)
        if left < 0:
            break
        kept.append(line)
    return kept[::-1]


def _memory(record: CrashRecord) -> Json:
    of = "its control group, page cache included" if record.in_group else "its resident set"
    return {"of": of, "every_s": EVERY_S, "samples": [list(each) for each in record.memory_samples]}


def _requests(record: CrashRecord, in_flight: InFlightSummary) -> Json:
    """`is_complete` False: a gateway had not reported in time, and there may have been more."""
    return {
        "in_flight": in_flight.in_flight,
        "begun": in_flight.begun,
        "is_complete": in_flight.is_complete or not record.is_linked,
        "retry_on_crash": record.spec.retry_on_crash,
        "named": [asdict(each) | {"age_s": round(each.age_s, 3)} for each in in_flight.requests[:MAX_REQUESTS]],
    }
