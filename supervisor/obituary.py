"""The evidence of one death, gathered while it is still there: status, counters of the group, last words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.messages import Exited
from mmsup.ipc.page import Activity
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.cause import Cause, Evidence, cause_of
from mmsup.supervisor.site import Judgement
from mmsup.supervisor.tenure import Tenure

TAIL_CHARACTERS: Final = 2000
_FATAL: Final = "Fatal Python error: "


@dataclass(frozen=True, slots=True)
class Death:
    """One death, for everyone who asks."""

    cause: Cause
    evidence: Evidence
    executing: bool
    """Its page said that a batch was running."""

    @property
    def judgement(self) -> Judgement:
        """What the callers of what was in flight get."""
        return Judgement(self.cause.code, self.cause.text, self.cause.retryable)

    @property
    def load_failure(self) -> Judgement:
        """What those who wait for the load get."""
        return Judgement(self.cause.code, self.cause.text, self.cause.retryable, of_load=True)

    def fields(self) -> dict[str, Any]:  # JSON
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
            "tail": list(evidence.tail),
        }


def of(spec: ModelSpec, tenure: Tenure, exited: Exited, tail: Sequence[str]) -> Death:
    """The death of this life. Reads the control group, which is there until it is buried."""
    reading = tenure.group.read()
    condemned, failed = tenure.judgement, tenure.failed
    progress = tenure.life.progress() if tenure.life is not None else None
    evidence = Evidence(
        worker=f"{spec.name}/{spec.version}",
        pid=exited.pid,
        status=exited.status,
        signal=exited.signal,
        ready=tenure.ready_s > 0,
        oom_kills=reading.oom_kills if reading else 0,
        cap_bytes=tenure.group.cap_bytes or spec.memory_bytes,
        peak_bytes=reading.peak_bytes if reading else 0,
        in_flight=None,
        failed_code=failed.code if failed and failed.code != "load_timeout" else "",
        failed_text=failed.text if failed else "",
        condemned_code=failed.code if failed and failed.code == "load_timeout" else condemned.code if condemned else "",
        condemned_text=failed.text if failed else condemned.text if condemned else "",
        asked=tenure.told_to_leave or tenure.dropped,
        crash=tenure.life.crash_text if tenure.life else "",
        tail=tuple(line[:TAIL_CHARACTERS] for line in tail),
    )
    executing = progress is not None and progress.activity is Activity.BUSY
    return Death(cause_of(evidence), evidence, executing)


def first_words(crash: str) -> tuple[str, str]:
    """Code and text of what the crash pipe said first, for callers: no frame, no path."""
    first = crash.strip().splitlines()[0] if crash.strip() else ""
    word = first.removeprefix(_FATAL)[:100] if first.startswith(_FATAL) else "a fatal signal"
    return "worker_sigbus" if word.startswith("Bus error") else "worker_crashed", f"it crashed: {word}"


def said_to_callers(spec: ModelSpec, judgement: Judgement) -> Judgement:
    """A condemnation as the callers of that worker get it."""
    # Clients look for these words where a deadline, theirs or the worker's, has passed.
    head = "Request timeout expired: " if judgement.code == "worker_hung" else ""
    text = f"{head}worker {spec.name}/{spec.version} is being ended: {judgement.text}"
    return Judgement(judgement.code, text, judgement.retryable)
