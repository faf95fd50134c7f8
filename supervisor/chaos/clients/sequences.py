"""The sequences of a client: each is used by one request at a time, and ends after some of them.

An answer tells how many requests of its sequence the model has run. Any other number than that of the requests that
were answered shows a state that was lost, or is another one's, and was not said to be.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from mmsup.supervisor.chaos.observe.history import RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import RIGHT

LENGTH: Final = 12
"""Requests of a sequence."""


@dataclass(slots=True)
class ClientSequence:
    id: int
    answered: int = 0

    def parameters(self) -> dict[str, Any]:
        """Of its next request."""
        return {
            "sequence_id": self.id,
            "sequence_start": self.answered == 0,
            "sequence_end": self.answered == LENGTH - 1,
        }


class ClientSequences:
    """Of one model: those that no request is using, the one first that was not used for longest."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._free: deque[ClientSequence] = deque()

    def take(self) -> ClientSequence:
        """For one request; `give_back` follows."""
        return self._free.popleft() if self._free else ClientSequence(next(self._ids))

    def give_back(self, sequence: ClientSequence, outcome: RequestOutcome) -> None:
        """After anything but a right answer a client does not know what has become of it, and begins another one."""
        sequence.answered += 1
        if outcome.kind == RIGHT and sequence.answered < LENGTH:
            self._free.append(sequence)
