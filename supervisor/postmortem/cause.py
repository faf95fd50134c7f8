"""The cause of a worker's exit: a pure function of the evidence, never a guess.

The rules are tried in this order; the first that applies decides.

    another model of its group ended the process  model_restarting
    the kernel's OOM counter rose               worker_oom; before it was ready: does_not_fit
    it reported why its load failed             the reported code
    it was condemned, and the kill ended it     the code of the condemnation
    it was told to stop                         unavailable
    it exited with the status for a lost GPU    gpu_fault
    it reported why its model could not move    worker_crashed
    SIGBUS                                      worker_sigbus
    any other signal, any exit status           worker_crashed; before it was ready: load_failed

waitid() cannot tell a kill for memory from another SIGKILL; only the counter of the control group can. So the sender of
a SIGKILL without it is unknown. Status 0 of a worker that was not told to stop is a crash too.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.errors import make_error
from mmsup.ipc.stray_signals import signal_name
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.postmortem import stack_trace

TAIL_LINES: Final = 3
"""Last lines of output in the text for operators; the rest is in `ctl logs`."""
_OUR_SIGNALS: Final = (0, signal.SIGTERM, signal.SIGKILL, signal.SIGUSR2)
"""With another signal it died by itself before the kill reached it. SIGUSR2 requests the stack dump before: a process
without a handler for it dies of it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    worker: str
    """`bert/2`: model and version."""
    pid: int
    status: int
    signal: int
    """0: it exited with `status`."""
    ready: bool
    """It had become ready."""
    oom_kills: int = 0
    """By how much the counter of its control group rose."""
    counts_oom: bool = True
    """Whether there is such a counter."""
    cap_bytes: int | None = None
    peak_bytes: int = 0
    """0: unknown."""
    in_flight: int | None = None
    """Requests in flight; None: unknown."""
    load_failed_code: str = ""
    load_failed_text: str = ""
    """What it reported of its load."""
    condemned_code: str = ""
    condemned_text: str = ""
    """Why it was about to be killed: `worker_hung`, `load_timeout`, `bad_worker_reply`, `worker_oom`,
    `gpu_oom`."""
    move_failed_text: str = ""
    """Why its model could not be offloaded or restored."""
    stop_requested: bool = False
    """It was told to stop, or killed because nobody wanted it any more."""
    ended_by: str = ""
    """The model of its co-location group that ended the process which they share, and how; else empty."""
    shared_with: tuple[str, ...] = ()
    """The other models in its process."""
    crash: str = ""
    """What faulthandler wrote."""
    tail: tuple[str, ...] = ()
    """The last lines of output."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Written to the crash report under these field names."""

    code: str
    """One of ipc/errors.py."""
    word: str
    """For events and tables: `oom`, `hung`, `signal SIGSEGV`, `exit 3`."""
    text: str
    """For clients: no pid, no path, nothing that the model printed."""
    detail: str
    """For operators."""
    retryable: bool


def cause_of(evidence: Evidence) -> Cause:
    for rule in _RULES:
        found = rule(evidence)
        if found is not None:
            return found
    raise AssertionError(f"no rule for {evidence}")


def _shared(evidence: Evidence) -> Cause | None:
    if not evidence.ended_by:
        return None
    return _cause(evidence, "model_restarting", "shared", f"shares its process with {evidence.ended_by}")


def _oom(evidence: Evidence) -> Cause | None:
    if not evidence.oom_kills:
        return None
    cap = f"cap {size_text(evidence.cap_bytes)}" if evidence.cap_bytes is not None else "no cap of its own"
    peak = f", peak {size_text(evidence.peak_bytes)}" if evidence.peak_bytes else ""
    what = f"was killed by the kernel for memory: {cap}{peak}; raise memory or lower max_batch_size"
    if not evidence.ready:
        return _cause(evidence, "does_not_fit", "oom", f"{what} (it was loading)")
    return _cause(evidence, "worker_oom", "oom", what, retryable=evidence.in_flight != 1)


def _load_failed(evidence: Evidence) -> Cause | None:
    if not evidence.load_failed_code:
        return None
    return _cause(evidence, evidence.load_failed_code, "load failed", f"could not load: {evidence.load_failed_text}")


_CONDEMNED: Final = {
    "worker_hung": ("hung", "made no progress and was killed"),
    "load_timeout": ("load timeout", "did not load in time and was killed"),
    "bad_worker_reply": ("bad reply", "broke the protocol and was killed"),
    "worker_oom": ("memory", "was ended for memory"),
    "gpu_oom": ("gpu memory", "was ended for memory of its device"),
}


def _condemned(evidence: Evidence) -> Cause | None:
    if evidence.condemned_code not in _CONDEMNED or evidence.signal not in _OUR_SIGNALS:
        return None
    word, what = _CONDEMNED[evidence.condemned_code]
    why = f": {evidence.condemned_text}" if evidence.condemned_text else ""
    return _cause(evidence, evidence.condemned_code, word, what + why)


def _stopped(evidence: Evidence) -> Cause | None:
    if not evidence.stop_requested or evidence.signal not in _OUR_SIGNALS or (evidence.status and not evidence.signal):
        return None
    return _cause(evidence, "unavailable", "stopped", "was stopped")


def _gpu_fault(evidence: Evidence) -> Cause | None:
    if evidence.signal or evidence.status != exit_codes.DEVICE_LOST:
        return None
    return _cause(evidence, "gpu_fault", "gpu fault", "met a GPU error that its context does not survive, and left")


def _move_failed(evidence: Evidence) -> Cause | None:
    if not evidence.move_failed_text or evidence.signal or evidence.status != exit_codes.LOAD_FAILED:
        return None
    return _cause(evidence, "worker_crashed", "move failed", f"ended by itself: {evidence.move_failed_text}")


def _sigbus(evidence: Evidence) -> Cause | None:
    if evidence.signal != signal.SIGBUS:
        return None
    what = "was killed by SIGBUS: memory that it had mapped was no longer there (a file cut short, or a full tmpfs)"
    return _cause(evidence, "worker_sigbus", "signal SIGBUS", what)


def _signal(evidence: Evidence) -> Cause | None:
    if not evidence.signal:
        return None
    name = signal_name(evidence.signal)
    sender = ", sender unknown" if evidence.signal in (signal.SIGKILL, signal.SIGTERM) else ""
    return _cause(
        evidence, _crash_code(evidence), f"signal {name}", f"was killed by {name}{sender}{_while_loading(evidence)}"
    )


def _status(evidence: Evidence) -> Cause | None:
    what = {
        exit_codes.LOAD_FAILED: "exited because its load failed, and gave no reason",
        exit_codes.NO_WORKER_MODULES: "could not start: its interpreter (key python) lacks what a worker needs",
        exit_codes.KEEPER_LOST: "exited because it had lost its keeper",
    }.get(evidence.status, f"exited with status {evidence.status}{_while_loading(evidence)}")
    return _cause(evidence, _crash_code(evidence), f"exit {evidence.status}", what)


_Rule = Callable[[Evidence], Cause | None]
_RULES: Final[tuple[_Rule, ...]] = (
    _shared,
    _oom,
    _load_failed,
    _condemned,
    _stopped,
    _gpu_fault,
    _move_failed,
    _sigbus,
    _signal,
    _status,
)


def _crash_code(evidence: Evidence) -> str:
    return "worker_crashed" if evidence.ready else "load_failed"


def _while_loading(evidence: Evidence) -> str:
    return "" if evidence.ready else " while it was loading"


def _cause(evidence: Evidence, code: str, word: str, what: str, *, retryable: bool | None = None) -> Cause:
    if retryable is None:
        retryable = make_error(code, "").retryable
    text = f"worker {evidence.worker} {what}"
    detail = f"worker {evidence.worker} (pid {evidence.pid}) {what}{_details(evidence)}"
    return Cause(code, word, text, detail, retryable)


def _details(evidence: Evidence) -> str:
    more = [f"{evidence.in_flight} in flight"] if evidence.in_flight else []
    if evidence.ended_by:
        return "".join(f"; {each}" for each in more)  # what was printed there is not of this model
    if evidence.shared_with:
        more.append(f"it shared its process with {', '.join(evidence.shared_with)}")
    if evidence.crash:
        more.append(f"faulthandler: {stack_trace.summary(evidence.crash)}")
    if evidence.tail:
        more.append("last output: " + " | ".join(evidence.tail[-TAIL_LINES:]))
    return "".join(f"; {each}" for each in more)
