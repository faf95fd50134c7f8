"""One hot upgrade in the controller's checkpoint: how far it is, or what its result was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.errors import ServerError

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
    stage: str
    """`code`, `processes`, `done`."""
    keeper_generation: int
    replaces_keeper: bool
    """The keeper was to re-execute itself as another program."""
    replaced: int
    """Processes that were replaced."""
    kept: dict[str, str]
    """What keeps running the old code (`worker 7 of digits/1`), and why."""
    failure: str
    """Why it ended early; empty if it did not."""
    seconds: float
    """How long it took; 0 until it is done."""
    controllers: int
    """How many have started to work at it: it is given up if one after the other crashes."""


def new_record(ticket: str, keeper_generation: int, *, force: bool) -> UpgradeRecord:
    """An upgrade that starts now."""
    return UpgradeRecord(
        ticket=ticket,
        force=force,
        started_s=time.monotonic(),
        stage=CODE,
        keeper_generation=keeper_generation,
        replaces_keeper=False,
        replaced=0,
        kept={},
        failure="",
        seconds=0.0,
        controllers=0,
    )


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
