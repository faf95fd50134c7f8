"""How a user's class sees the sequence that a row of its inputs belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from mmsup.worker.execution.engine import Engine


@dataclass(frozen=True, slots=True)
class SequenceView:
    id: int | str
    start: bool
    """This is its first request: `state` is empty."""
    end: bool
    """This is its last request: `state` is dropped after it."""
    state: dict[str, Any]
    """Whatever the class keeps for this sequence from one request to the next."""


class SequenceAwareEngine(Protocol):
    """An engine whose model is told the sequences of a run."""

    sequences: Sequence[SequenceView | None] | None
    """Of the rows of the next run; set before each. None after `load`: the model does not take them."""


def as_sequence_aware(engine: Engine) -> SequenceAwareEngine | None:
    engine = getattr(engine, "inner", engine)  # reshaped_engine.py has nothing to do with sequences
    return cast("SequenceAwareEngine", engine) if getattr(engine, "sequences", None) is not None else None
