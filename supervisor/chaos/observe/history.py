"""The history of a run: every request, every outcome, every fault, one JSON object a line, as it happens.

    {"what": "invoke", "t": 3.02, "id": 17, …}

Times are seconds on the monotonic clock since the run began. The file is append-only: a run that was cut off has told
all that happened before. The checker and the report read nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run: what a repetition needs."""

    seed: int
    seconds: float
    models: dict[str, str]
    """Name to role."""
    machine: str
    server: str
    command: str = ""
    from_s: float = 0.0
    """When the clients began; what is before is warming up."""
    calm_s: float = 0.0
    """Until then there are no faults: the baseline."""
    own_codes: bool = True
    """Whether the server names causes in mmsup's words."""


@dataclass(frozen=True, slots=True)
class Invoke:
    """A request goes out."""

    t: float
    id: int
    model: str
    intended: float
    """When it should have gone out; latency counts from here."""
    size: int
    strike: int = 0
    """The fault that it does, or 0."""
    along: int = 0
    """The fault that it is to be together with, without a part in it, or 0."""
    repeats: int = 0
    """The request that this is the same as, sent again, or 0."""


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What became of a request."""

    t: float
    id: int
    kind: str
    """`right`, `wrong`, `crossed`, `error`, `reset`, `refused`, `timeout`, `stray`."""
    status: int = 0
    code: str = ""
    pid: int = 0
    """The process that answered, if it said so."""
    revision: int = 0
    """The edition of the model that answered, if it said so."""
    whose: int = 0
    """Of a crossed reply: the request that it belongs to."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class FaultInjected:
    """A fault was brought about, or could not be."""

    t: float
    number: int
    fault: str
    victim: str
    done: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class FaultFinished:
    """What was to be done for a fault is done."""

    t: float
    number: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """The kernel said that a worker has ended."""

    t: float
    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """An event of the server's journal, when it reached us."""

    t: float
    event: dict[str, Any]  # JSON: time, event, model, …


@dataclass(frozen=True, slots=True)
class RevisionInForce:
    """From `t` on a request to the model must be answered by this revision or a later one; 0: by none."""

    t: float
    model: str
    revision: int


@dataclass(frozen=True, slots=True)
class ServedCounts:
    """What the server's metrics say was answered with a result, by model."""

    t: float
    success: dict[str, float]


@dataclass(frozen=True, slots=True)
class LeakReport:
    """A look for what is left behind; what was found, each a sentence that begins with its invariant."""

    t: float
    when: str
    found: list[str] = field(default_factory=list[str])
    counts: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class ServerRestarted:
    """Whoever looks after the server started it anew, and it served again at `until_s`."""

    t: float
    until_s: float
    why: str


Record = (
    RunStarted
    | Invoke
    | RequestOutcome
    | FaultInjected
    | FaultFinished
    | WorkerDeath
    | ServerEvent
    | RevisionInForce
    | ServedCounts
    | LeakReport
    | ServerRestarted
)
RECORD_TYPES: Final = {
    each.__name__.lower(): each
    for each in (
        RunStarted,
        Invoke,
        RequestOutcome,
        FaultInjected,
        FaultFinished,
        WorkerDeath,
        ServerEvent,
        RevisionInForce,
        ServedCounts,
        LeakReport,
        ServerRestarted,
    )
}


class History:
    """The records of a run that goes on, in memory and in its file."""

    def __init__(self, path: Path | None = None) -> None:
        self.records: list[Record] = []
        self._began_s = time.monotonic()
        self._file: TextIO | None = path.open("w", encoding="utf-8") if path is not None else None

    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began_s

    def add(self, record: Record) -> None:
        """Write it down."""
        self.records.append(record)
        if self._file is not None:
            self._file.write(encode_record(record))

    def close(self) -> None:
        """Everything is in the file."""
        if self._file is not None:
            self._file.close()


def encode_record(record: Record) -> str:
    """One line of the file."""
    fields = {name: getattr(record, name) for name in _field_names(type(record))}
    return json.dumps({"what": type(record).__name__.lower(), **fields}, separators=(",", ":")) + "\n"


def _field_names(kind: type[Record]) -> tuple[str, ...]:
    return tuple(each.name for each in dataclasses.fields(kind))


def decode_records(lines: Iterator[str]) -> Iterator[Record]:
    """The records of a file; a last line that was cut off is passed over. ValueError for what is no history."""
    for line in lines:
        try:
            fields = json.loads(line)
        except ValueError:
            if line.endswith("\n"):
                raise
            return
        yield RECORD_TYPES[fields.pop("what")](**fields)
