"""The evidence of one death, gathered while it is still there: status, counters of the group, last words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.ipc.messages.keeper_control import ChildExited
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.postmortem.cause import Cause, Evidence, cause_of
from mmsup.supervisor.postmortem.crash_report import CrashRecord

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

TAIL_LINES: Final = 20
"""In the journal; the bundle has more."""
TAIL_CHARACTERS: Final = 2000
_FATAL: Final = "Fatal Python error: "


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """One death, for everyone who asks."""

    cause: Cause
    evidence: Evidence
    progress: Progress | None
    """Its page at the end."""

    @property
    def executing(self) -> bool:
        """Its page said that a batch was running."""
        return self.progress is not None and self.progress.activity is Activity.BUSY

    @property
    def failure(self) -> WorkerFailure:
        """What the callers of what was in flight get."""
        return WorkerFailure(self.cause.code, self.cause.text, self.cause.retryable)

    @property
    def load_failure(self) -> WorkerFailure:
        """What those who wait for the load get."""
        return WorkerFailure(self.cause.code, self.cause.text, self.cause.retryable, of_load=True)

    def event_fields(self) -> dict[str, Any]:  # JSON
        """For the journal, beside `cause.detail`."""
        evidence = self.evidence
        return {
            "pid": evidence.pid,
            "cause": self.cause.word,
            "sig": evidence.signal,
            "status": evidence.status,
            "oom": evidence.oom_kills > 0,
            "oom_kills": evidence.oom_kills,
            "cap_bytes": evidence.cap_bytes,
            "peak_bytes": evidence.peak_bytes or None,
            "in_flight": evidence.in_flight,
            "executing": self.executing,
            "tail": list(evidence.tail[-TAIL_LINES:]),
        }


def collect(
    spec: ModelSpec, tenure: WorkerProcess, exited: ChildExited, tail: Sequence[str], in_flight: int | None = None
) -> WorkerExit:
    """The death of this life; `in_flight` if all gateways have told. Reads the control group, which is there until its
    burial."""
    reading = tenure.group.read()
    condemned, failed = tenure.condemned, tenure.load_failure
    progress = tenure.process.progress() if tenure.process is not None else None
    evidence = Evidence(
        worker=f"{spec.name}/{spec.version}",
        pid=exited.pid,
        status=exited.status,
        signal=exited.signal,
        ready=tenure.ready_s > 0,
        oom_kills=reading.oom_kills if reading else 0,
        counts_oom=reading is not None,
        cap_bytes=tenure.group.cap_bytes or spec.memory_bytes,
        peak_bytes=reading.peak_bytes if reading else 0,
        in_flight=in_flight,
        load_failed_code=failed.code if failed and failed.code != "load_timeout" else "",
        load_failed_text=failed.text if failed else "",
        condemned_code=failed.code if failed and failed.code == "load_timeout" else condemned.code if condemned else "",
        condemned_text=failed.text if failed else condemned.text if condemned else "",
        stop_requested=tenure.stop_sent or tenure.killed_unwanted,
        crash=tenure.process.crash_text if tenure.process else "",
        tail=tuple(line[:TAIL_CHARACTERS] for line in tail),
    )
    return WorkerExit(cause_of(evidence), evidence, progress)


def crash_record(
    instance: Instance, death: WorkerExit, time_text: str, next_delay_s: float | None, given_up: str
) -> CrashRecord:
    """All of it that goes into the bundle, once its event is written; `time_text` is the event's."""
    tenure, now_s = instance.worker, time.monotonic()
    assert tenure is not None, f"instance {instance.id} has nothing that could have died"
    return CrashRecord(
        time=time_text,
        spec=instance.revision.spec,
        instance=instance.id,
        generation=instance.generation,
        cause=death.cause,
        evidence=death.evidence,
        progress=death.progress,
        ended_ns=round(now_s * 1e9),
        is_linked=tenure.is_linked,
        lived_s=now_s - tenure.spawned_s,
        served_s=now_s - tenure.ready_s if tenure.ready_s else 0.0,
        in_group=tenure.group.folder is not None,
        memory_samples=tenure.memory_history.rows(now_s),
        recent_events=instance.context.event_log.recent(instance.id),
        transitions=tuple(instance.transitions),
        next_delay_s=next_delay_s,
        given_up=given_up,
    )


def crash_summary(crash: str) -> tuple[str, str]:
    """Code and text of what the crash pipe said first, for callers: no frame, no path."""
    first = crash.strip().splitlines()[0] if crash.strip() else ""
    word = first.removeprefix(_FATAL)[:100] if first.startswith(_FATAL) else "a fatal signal"
    return "worker_sigbus" if word.startswith("Bus error") else "worker_crashed", f"it crashed: {word}"


def failure_for_callers(spec: ModelSpec, judgement: WorkerFailure) -> WorkerFailure:
    """A condemnation as the callers of that worker get it."""
    # Clients look for these words where a deadline, theirs or the worker's, has passed.
    head = "Request timeout expired: " if judgement.code == "worker_hung" else ""
    text = f"{head}worker {spec.name}/{spec.version} is being ended: {judgement.text}"
    return WorkerFailure(judgement.code, text, judgement.retryable)
