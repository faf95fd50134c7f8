"""How one request waits for a worker: its deadlines, its priority, and since when it waits for a model to be loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmsup.ipc.errors import MmsupError

ENDLESS_S = 1e9


class WaitingBody(Protocol):
    """The body of a request that waits, which is received only when its worker is known."""

    @property
    def held_bytes(self) -> int:
        """Most of it that this process holds meanwhile."""
        ...

    async def read_options(self, wait: RequestWait) -> None:
        """Read deadline and priority that the request asks for, as far as they can be known now."""

    def on_cold(self) -> None:
        """The request waits for a model to be loaded."""


@dataclass(slots=True, eq=False)
class ColdStart:
    """One wake of a model that this gateway has asked the controller for."""

    is_done: bool = False
    error: MmsupError | None = None
    """Why the controller could not even begin; a load that fails later is seen in the route."""


@dataclass(slots=True, eq=False)
class RequestWait:
    deadline_ns: int
    """CLOCK_MONOTONIC; put off by the time that the request waits for a model to be loaded."""
    client_deadline_ns: int = 0
    """The client's own, which nothing puts off; 0: none."""
    priority: int = 0
    body: WaitingBody | None = None
    """None if it was received already."""
    cold_since_ns: int = 0
    """Since when it waits for a model to be loaded from sleep; 0: it does not."""
    cold_limit_s: float = 0.0
    held_bytes: int = 0
    """Counted against `max_cold_bytes`."""
    start: ColdStart | None = None
    choose: Callable[[Sequence[Any]], Any] | None = None  # of links, and one of them
    """Takes one of the links that serve, None where each may be taken."""

    def has_asked(self) -> bool:
        """Whether the controller has been asked for its model, and has not answered that it serves."""
        return self.start is not None and (not self.start.is_done or self.start.error is not None)

    def left_s(self, now_ns: int) -> float:
        """Until its deadline. The model's own one does not run while the model is loaded."""
        if not self.cold_since_ns:
            return (self.deadline_ns - now_ns) / 1e9
        return (self.client_deadline_ns - now_ns) / 1e9 if self.client_deadline_ns else ENDLESS_S

    def grace_s(self, grace_end_ns: int, now_ns: int) -> float:
        """How much longer it may wait for a worker: for the load of its model, or else to the end of its wait for a
        restart."""
        if self.cold_since_ns:
            return self.cold_limit_s - (now_ns - self.cold_since_ns) / 1e9
        return (grace_end_ns - now_ns) / 1e9

    def end_cold(self, now_ns: int) -> int:
        """It waits for that no more: the time that it has waited, by which its deadline is put off."""
        waited_ns = now_ns - self.cold_since_ns
        self.cold_since_ns = 0
        self.deadline_ns += waited_ns
        if self.client_deadline_ns:
            self.deadline_ns = min(self.deadline_ns, self.client_deadline_ns)
        return waited_ns
