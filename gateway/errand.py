"""One inference on the fast way: from its plan to the bytes of its reply, without a task unless something must wait.

Who calls: `front.py`, in this order: `opened`, then `run` when the body lies in `space`, then `leave` when the bytes
that it was given are in the socket, or `cancel` if the client goes away before. The errand calls back once, with a
reply. What takes waiting (a larger grant, the end of a worker's life, a long text) is left to a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from mmsup.gateway import inference, outgoing, reply
from mmsup.gateway.counting import Ticket
from mmsup.gateway.distrust import Checked
from mmsup.gateway.exchange import Exchange
from mmsup.gateway.inference import Inference, Order
from mmsup.gateway.ledger import Said
from mmsup.gateway.outgoing import Parts
from mmsup.gateway.plans import KEY_BYTES_LIMIT, Plan
from mmsup.gateway.status import CLOSING
from mmsup.ipc.errors import CallerError
from mmsup.ipc.halves import Halves
from mmsup.ipc.messages import Reply

JOIN_LIMIT_BYTES: Final = 1 << 16
"""Replies up to this size are copied once and sent in one piece."""
Words = tuple[bytes, int, str, str]
"""JSON before blobs, size of the whole body, model, version: the same words mean the same order."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes to the client: `parts` may lie in memory that is free only after `leave`."""

    parts: Parts
    close: bool = False


@dataclass(slots=True)
class Known:
    """An order that was read before, and the last reply to it that can be said again with other bytes."""

    order: Order
    reply: Familiar | None = None


class Familiar:
    """A reply to an order that can be said again: the words of its outputs, all inline. Their bytes are not in it."""

    __slots__ = ("_body", "_said", "_start")

    def __init__(self, said: Checked, start: bytes, body: bytes) -> None:
        self._said = said
        self._start = start
        self._body = body

    def fits(self, said: Checked | None, reply: Reply) -> bool:
        """Whether that reply has the same words, and all its bytes with it."""
        return said is self._said and tuple not in map(type, reply.places)

    def bytes_with(self, reply: Reply) -> bytes:
        """The whole reply."""
        return b"".join((self._start, outgoing.end(), self._body, *cast("tuple[bytes, ...]", reply.places)))


Orders = Halves[Words, Known]


class Errand:
    """One request; its client's connection owns it."""

    __slots__ = (
        "_deliver",
        "_exchange",
        "_inference",
        "_known",
        "_order",
        "_orders",
        "_plan",
        "_task",
        "_ticket",
        "model",
        "request_id",
        "space",
    )

    def __init__(
        self, core: Inference, orders: Orders, plan: Plan, ticket: Ticket, deliver: Callable[[Answer], None]
    ) -> None:
        self._inference = core
        self._orders = orders
        self._plan = plan
        self._ticket = ticket
        self._deliver = deliver
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._known: Known | None = None
        self._order: Order | None = None
        self.model = plan.model
        self.request_id = next(iter(plan.echo.values())) if plan.echo else ""
        self.space: memoryview = memoryview(b"")
        """Where the body goes, all of it: what lies before `Layout.start` is ours."""

    def open(self) -> bool:
        """Find a worker and room for the body; False if something must be waited for, MmsupError if it cannot be."""
        plan, backend = self._plan, self._inference.backend
        exchange = backend.try_open(plan.model, plan.version)
        if exchange is None:
            return False
        self._exchange = exchange
        if not inference.takes_long(plan.layout, exchange.metadata):
            space = exchange.try_space(plan.layout.space)
            if space is not None:
                self.space = space
                self._ticket.serves(exchange.version)
                return True
        self.leave()
        return False

    def run(self) -> None:
        """The body has come: read it and send it to the worker."""
        exchange = self._exchange
        assert exchange is not None, "an errand is run once it was opened"
        try:
            order = self._order = self._read(exchange)
            inference.begin(exchange, order, self._ticket)
            if not exchange.try_infer(order.run, self._hear):
                self._wait(None)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request: the client has its answer
            self.fail(error)

    def _read(self, exchange: Exchange) -> Order:
        layout, metadata = self._plan.layout, exchange.metadata
        if not 0 < layout.header <= min(KEY_BYTES_LIMIT, layout.size - 1):
            return inference.parsed(self, metadata, self.space, layout)
        words = (bytes(self.space[layout.start : layout.blobs]), layout.size, self.model, exchange.version)
        known = self._orders.get(words)
        if known is None or known.order.metadata is not metadata:
            order = inference.parsed(self, metadata, self.space, layout)
            if any(each.datatype == "BYTES" for each in metadata.inputs):
                return order  # whether strings fit is seen in the bytes themselves, each time
            known = Known(order)
            self._orders.put(words, known)
        self._known = known
        self.request_id = known.order.asked.id or self.request_id
        return known.order

    # The reply.

    def _hear(self, said: Said) -> None:
        try:
            if type(said) is not Reply or said.need:
                self._wait(said)
            else:
                self._reply(said)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self.fail(error)

    def _reply(self, said: Reply) -> None:
        exchange, order, known = self._exchange, self._order, self._known
        assert exchange is not None, "a reply came for an errand that was not run"
        assert order is not None, "a reply came for an errand that was not run"
        if (
            known is not None
            and known.reply is not None
            and not self._plan.echo
            and known.reply.fits(exchange.said, said)
        ):
            self._ticket.finished(said, order.inferences)
            self._deliver(Answer([known.reply.bytes_with(said)]))
            return
        outcome = exchange.outcome(said)
        made = inference.shaped(exchange, order, outcome)
        if made is None:
            self._wait(said)
            return
        self._ticket.finished(outcome, order.inferences)
        self._note(exchange.said, made)
        self._send(made)

    def _note(self, said: Checked | None, made: reply.Reply) -> None:
        """Remember the words of a reply if all that changes in it are the bytes of its outputs, in their order."""
        if self._known is None or self._plan.echo or made.blobs is None or made.size > JOIN_LIMIT_BYTES:
            return
        if said is None or None in said.sizes:
            return
        wanted = self._known.order.asked.outputs
        simple = all(each.binary and not each.classes for each in wanted)
        if simple and [each.spec.name for each in wanted] == [each.name for each in said.outputs]:
            start, _ = outgoing.tensors(made, {})
            self._known.reply = Familiar(said, start, made.head)

    def _send(self, made: reply.Reply) -> None:
        start, body = outgoing.tensors(made, self._plan.echo)
        head = start + outgoing.end()
        if made.size <= JOIN_LIMIT_BYTES:
            self._deliver(Answer([b"".join((head, *body))]))
        else:
            self._deliver(Answer([head, *body]))

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        told = inference.told(error)
        self._ticket.failed(error)
        self._deliver(Answer([outgoing.error(told, self.request_id, self._plan.echo)], told.code in CLOSING))

    # What waits.

    def _wait(self, said: Said | None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._conclude(said), name="errand")

    async def _conclude(self, said: Said | None) -> None:
        exchange, order = self._exchange, self._order
        assert exchange is not None, "an errand waits once it was opened"
        assert order is not None, "an errand waits once its body was read"
        try:
            made = await self._inference.conclude(exchange, order, self._ticket, said)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._task = None
            self.fail(error)
            return
        self._task = None
        self._send(made)

    # The end.

    def late(self, error: CallerError) -> None:
        """The body did not come in time."""
        self.fail(error)

    def cancel(self) -> None:
        """The client went away: nobody is told anything."""
        self._deliver = _nobody
        self._ticket.failed(asyncio.CancelledError())
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self.leave())
        else:
            self.leave()

    def leave(self) -> None:
        """No byte of it is used any more."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self.space = memoryview(b"")
            exchange.leave()


def _nobody(_: Answer) -> None:
    """Hears the reply to a client that is gone."""
