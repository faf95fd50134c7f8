"""One hot upgrade in the controller's checkpoint: how far it is, or what its result was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mmsup.ipc.errors import ServerError
from mmsup.supervisor.state.checkpoint import CheckpointWriter

CHECKPOINT_KEY: Final = "upgrade"

CODE: Final = "code"
PROCESSES: Final = "processes"
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class UpgradeRecord:
    """One upgrade, across all controllers that work at it."""

    ticket: str
    """Chosen by the client, so that it can ask again after a restart of the controller."""
    force: bool
    started_s: float
    """Every process that was started before runs the old code."""
    keeper_generation: int
    stage: str = CODE
    """`code`, `processes`, `done`."""
    replaces_keeper: bool = False
    """The keeper was to re-execute itself as another program."""
    replaced: int = 0
    kept: dict[str, str] = field(default_factory=dict[str, str])
    """What keeps running the old code (`worker 7 of digits/1`), and why."""
    failure: str = ""
    """Why it ended early; empty if it did not."""
    seconds: float = 0.0
    """How long it took; 0 until it is done."""
    controllers: int = 0
    """How many have started to work at it: it is given up if one after the other crashes."""


class UpgradeProgress:
    """The record of the last upgrade, and the clients that wait for it."""

    def __init__(self, record: UpgradeRecord | None, checkpoint: CheckpointWriter) -> None:
        self.record = record
        self.listeners: list[Callable[[str], None]] = []
        self._checkpoint = checkpoint

    @property
    def present(self) -> UpgradeRecord:
        assert self.record is not None, "an upgrade without a record"
        return self.record

    def update(self, **changes: Any) -> None:  # fields of the record
        self.record = replace(self.present, **changes)
        self._checkpoint.save(CHECKPOINT_KEY, self.record)

    def report(self, text: str) -> None:
        for listener in list(self.listeners):
            listener(text)


def failure_text(record: UpgradeRecord) -> str:
    """Why not everything was upgraded; empty if it was."""
    kept = "; ".join(f"{name} stays: {why}" for name, why in record.kept.items())
    if record.failure:
        return f"not upgraded: {record.failure}" + (f"; {kept}" if kept else "")
    return f"upgraded, but not all: {kept}" if kept else ""


def result_of_upgrade(record: UpgradeRecord) -> dict[str, Any]:  # JSON
    """The result of the command, or ServerError with all that was not upgraded."""
    failure = failure_text(record)
    if failure:
        raise ServerError("unavailable", failure)
    keeper = "renewed" if record.replaces_keeper else "same code"
    return {"keeper": keeper, "followed": record.replaced, "seconds": record.seconds}
