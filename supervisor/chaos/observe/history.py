"""The history of a run: requests, outcomes, faults, deaths and events, one JSON object per line, in order of time.

    {"what": "invoke", "t": 3.02, "id": 17, …}

Times are seconds of the monotonic clock since the start of the run. The file is appended to as things happen, so that
an interrupted run loses nothing. Checker and report read nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO


@dataclass(frozen=True, slots=True)
class RunStarted:
    seed: int
    seconds: float
    models: dict[str, str]
    """Name to role."""
    machine: str
    server: str
    command: str = ""
    from_s: float = 0.0
    """When the load started; requests before that are warm-up."""
    calm_s: float = 0.0
    """Until then no faults are injected: the baseline."""
    own_codes: bool = True
    """Whether the server's errors have the codes of mmsup."""


@dataclass(frozen=True, slots=True)
class Invoke:
    t: float
    id: int
    model: str
    intended: float
    """When it was to be sent; latency counts from here."""
    size: int
    strike: int = 0
    """Number of the fault that it triggers, or 0."""
    along: int = 0
    """Number of the fault that it accompanies without triggering it, or 0."""
    repeats: int = 0
    """The earlier request that it repeats, or 0."""
    via: str = ""
    """`grpc`, or nothing for HTTP."""


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    t: float
    id: int
    kind: str
    """`right`, `wrong`, `crossed`, `error`, `reset`, `refused`, `timeout`, `stray`."""
    status: int = 0
    code: str = ""
    pid: int = 0
    revision: int = 0
    whose: int = 0
    """Of a crossed reply: the request that its bytes belong to."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class FaultInjected:
    """A fault was injected, or (not `done`) could not be."""

    t: float
    number: int
    fault: str
    victim: str
    done: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class FaultFinished:
    t: float
    number: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A worker's pidfd became readable."""

    t: float
    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of the server's log, at the time when it was received."""

    t: float
    event: dict[str, Any]  # JSON: time, event, model, …


@dataclass(frozen=True, slots=True)
class RevisionInForce:
    """From `t` on requests to the model must be answered by this revision or a later one; 0: by none."""

    t: float
    model: str
    revision: int


@dataclass(frozen=True, slots=True)
class ServedCounts:
    t: float
    success: dict[str, float]
    known: float = 0.0
    """Of all models together: how many were served as known requests."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The result of a leak check: sentences, each with its invariant first, and counts for the report."""

    t: float
    when: str
    found: list[str] = field(default_factory=list[str])
    counts: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class ServerRestarted:
    """A ServerOperator restarted the server, and it served again at `until_s`."""

    t: float
    until_s: float
    why: str


Record = (
    RunStarted | Invoke | RequestOutcome | FaultInjected | FaultFinished | WorkerDeath | ServerEvent
    | RevisionInForce | ServedCounts | LeakReport | ServerRestarted
)  # fmt: skip
RECORD_TYPES: Final[dict[str, type[Record]]] = {
    "began": RunStarted,
    "invoke": Invoke,
    "outcome": RequestOutcome,
    "injected": FaultInjected,
    "over": FaultFinished,
    "death": WorkerDeath,
    "told": ServerEvent,
    "edition": RevisionInForce,
    "counted": ServedCounts,
    "left": LeakReport,
    "restarted": ServerRestarted,
}
"""By the value of `what` in the file."""
_WHAT: Final = {record_type: what for what, record_type in RECORD_TYPES.items()}


class History:
    """The records of a run that goes on, in memory and optionally in a file."""

    def __init__(self, path: Path | None = None) -> None:
        self.records: list[Record] = []
        self._began_s = time.monotonic()
        self._file: TextIO | None = path.open("w", encoding="utf-8") if path is not None else None

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._began_s

    def add(self, record: Record) -> None:
        self.records.append(record)
        if self._file is not None:
            fields = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
            self._file.write(json.dumps({"what": _WHAT[type(record)], **fields}, separators=(",", ":")) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
