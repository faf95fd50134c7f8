"""Which inferences wait for which others, so that none waits for itself. Pure but for the process of a link.

An *invocation* is an inference that another one has asked for: a call that a worker makes, an ensemble, or one of its
steps. A worker runs one thing at a time, so while it waits for a call, whatever else it has to run waits too. A call
that went to a worker which waits, directly or through others, for the one that calls would never be answered: such
workers are passed over, and if a model has no other the call is refused.

Known to one gateway: two calls in a circle by way of two gateways end by their deadlines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from mmsup.ipc.errors import ModelError, ServerError

if TYPE_CHECKING:
    from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
    from mmsup.gateway.dispatch.worker_link import WorkerLink

DEPTH_LIMIT: Final = 16
"""Inferences that may wait for each other in a row."""
OPEN_LIMIT: Final = 1024
"""Invocations that may be open at once in one gateway."""


class Invocation:
    """One inference that another one has asked for."""

    __slots__ = ("caller", "chain", "request")

    def __init__(self, chain: tuple[str, ...], caller: WorkerLink | None) -> None:
        """`chain`: the models that wait for each other, this one the last; `caller`: the worker that waits, None if a
        client does."""
        self.chain = chain
        self.caller = caller
        self.request: DispatchedRequest | None = None
        """Set when it has a worker."""

    @property
    def model(self) -> str:
        return self.chain[-1]

    def step(self, model: str) -> Invocation:
        """One that this one needs, and that the same worker waits for."""
        return Invocation((*self.chain, model), self.caller)


class Invocations:
    """Those that are open in this gateway."""

    def __init__(self) -> None:
        self._open: set[Invocation] = set()

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, invocation: Invocation) -> None:
        """ModelError `call_loop` where the chain is too long, ServerError `queue_full` where too many are open."""
        if len(invocation.chain) > DEPTH_LIMIT:
            shown = " -> ".join(invocation.chain)
            text = f"models call each other {len(invocation.chain)} deep ({shown}), at most {DEPTH_LIMIT} may"
            raise ModelError("call_loop", text, model=invocation.model)
        if len(self._open) >= OPEN_LIMIT:
            text = f"Exceeds maximum queue size: {OPEN_LIMIT} calls between models are open"
            raise ServerError("queue_full", text, model=invocation.model, retry_after_s=1)
        self._open.add(invocation)

    def leave(self, invocation: Invocation) -> None:
        self._open.discard(invocation)

    def served_by(self, link: WorkerLink, numbers: Sequence[int]) -> Invocation | None:
        """The one that is among these requests in flight at a worker."""
        for each in self._open:
            request = each.request
            in_flight = request.in_flight if request is not None and request.link is link else None
            if in_flight is not None and in_flight.message.id in numbers:
                return each
        return None

    def choose(self, invocation: Invocation, links: Sequence[WorkerLink]) -> WorkerLink | None:
        """The least loaded of these links whose worker does not wait for the one that calls; ModelError `call_loop`
        if all do."""
        caller = invocation.caller
        usable = [each for each in links if not each.closed]
        if caller is None or not usable:
            return min(usable, key=lambda each: each.load(), default=None)
        waiting, own = self._waits(), caller.process.pid
        free = [each for each in usable if own not in reached(each.process.pid, waiting)]
        if free:
            return min(free, key=lambda each: each.load())
        raise ModelError("call_loop", _loop_text(invocation, len(usable)), model=invocation.model)

    def _waits(self) -> dict[int, set[int]]:
        """For each process that waits for others: for which."""
        waits: dict[int, set[int]] = {}
        for caller, link in self._edges():
            waits.setdefault(caller.process.pid, set()).add(link.process.pid)
        return waits

    def _edges(self) -> Iterator[tuple[WorkerLink, WorkerLink]]:
        for each in self._open:
            caller, link = each.caller, each.request.link if each.request is not None else None
            if caller is not None and link is not None and not caller.closed and not link.closed:
                yield caller, link


def reached(start: int, waits: dict[int, set[int]]) -> set[int]:
    """A process, and all for which it waits, directly or through others."""
    found, todo = {start}, [start]
    while todo:
        for each in waits.get(todo.pop(), set()) - found:
            found.add(each)
            todo.append(each)
    return found


def _loop_text(invocation: Invocation, workers: int) -> str:
    chain, shown = invocation.chain, " -> ".join(invocation.chain)
    which = "its only worker waits" if workers == 1 else f"all its {workers} workers wait"
    advice = "break the loop, give it more instances"
    if chain[-1] not in chain[:-1]:
        return (
            f"model '{chain[-1]}' cannot be called by '{chain[-2]}' now ({shown}): {which} for this call, "
            f"or shares a process with who does; {advice}, or take the models apart"
        )
    return f"model '{chain[-1]}' would wait for itself ({shown}): {which} for this call; {advice}"
