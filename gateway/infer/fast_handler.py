"""One inference on the fast way: from its plan to the bytes of its reply, without a task unless something must wait.

Who calls: `front.py`, in this order: `opened`, then `run` when the body lies in `space`, then `leave` when the bytes
that it was given are in the socket, or `cancel` if the client goes away before. The errand calls back once, with a
reply. What takes waiting (a larger grant, the end of a worker's life, a long text) is left to a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import Exchange
from mmsup.gateway.dispatch.in_flight import Said
from mmsup.gateway.http import response_bytes
from mmsup.gateway.http.error_status import CLOSING
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import Inference, Order
from mmsup.gateway.infer.head_cache import Plan
from mmsup.gateway.infer.request_cache import Known, KnownText, Orders
from mmsup.gateway.infer.response_template import familiar
from mmsup.gateway.observability.request_counters import Ticket
from mmsup.gateway.protocol import infer_response, json_template
from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.data import Reply

JOIN_LIMIT_BYTES: Final = 1 << 16
"""Replies up to this size are copied once and sent in one piece."""
Deliver = Callable[[Parts, bool], None]
"""What goes to the client, in memory that may be free only after `leave`; whether the connection ends with it."""


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
        "request_id",
        "space",
    )

    def __init__(self, core: Inference, orders: Orders, plan: Plan, deliver: Deliver) -> None:
        self._inference = core
        self._orders = orders
        self._plan = plan
        self._deliver = deliver
        self._ticket = Ticket(core.counting, plan.model, plan.version)
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._known: Known | None = None
        self._order: Order | None = None
        self.request_id = plan.request_id

    @property
    def model(self) -> str:
        """The model that the path named."""
        return self._plan.model

    def open(self) -> bool:
        """Find a worker and room for the body; False if something must be waited for, MmsupError if it cannot be."""
        plan, backend = self._plan, self._inference.backend
        exchange = backend.try_open(plan.model, plan.version)
        if exchange is None:
            return False
        self._exchange = exchange
        if plan.is_short or not handler.takes_long(plan.layout, exchange.metadata):
            space = exchange.try_space(plan.layout.space)
            if space is not None:
                self.space: memoryview = space
                """Where the body goes, all of it: what lies before `Layout.start` is ours."""
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
            exchange.request_id = self.request_id
            if order.asked.timeout_us:
                handler.begin(exchange, order, self._ticket)
            if not exchange.try_infer(order.run, self._hear):
                self._wait(None)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request: the client has its answer
            self.fail(error)

    # Reading.

    def _read(self, exchange: Exchange) -> Order:
        plan = self._plan
        if plan.has_words:
            return self._read_with_blobs(exchange)
        if plan.has_text:
            return self._read_text(exchange)
        return handler.parsed(self, exchange.metadata, self.space, plan.layout)

    def _read_with_blobs(self, exchange: Exchange) -> Order:
        plan, metadata = self._plan, exchange.metadata
        words = (plan, bytes(self.space[plan.layout.start : plan.layout.blobs]))
        known = self._orders.get(words, exchange.version, metadata)
        if known is None:
            order = handler.parsed(self, metadata, self.space, plan.layout)
            if any(each.datatype == "BYTES" for each in metadata.inputs):
                return order  # whether strings fit is seen in the bytes themselves, each time
            known = Known(order, exchange.version)
            self._orders.put(words, known)
        self._known = known
        self.request_id = known.order.asked.id or self.request_id
        return known.order

    def _read_text(self, exchange: Exchange) -> Order:
        """A body of JSON: if only its numbers are new, only these are read."""
        plan, metadata = self._plan, exchange.metadata
        parts = json_template.cut(bytes(self.space))
        if parts is None:
            return handler.parsed(self, metadata, self.space, plan.layout)
        words = (plan.model, *parts[0])
        known = self._orders.get(words, exchange.version, metadata)
        if isinstance(known, KnownText) and (order := known.with_numbers(parts[1])) is not None:
            return self._recognise(known, order)
        order = handler.parsed(self, metadata, self.space, plan.layout)
        names = json_template.inputs_of(parts[0])
        if names is None or known is not None:
            return order
        known = KnownText(order, exchange.version, names)
        self._orders.put(words, known)
        return self._recognise(known, order)

    def _recognise(self, known: Known, order: Order) -> Order:
        self._known = known
        if order.asked.id:
            self.request_id = order.asked.id
        return order

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
        checked = exchange.said
        familiar_one = known.reply if known is not None and not self._plan.echo else None
        if familiar_one is not None and checked is not None and familiar_one.fits(checked, said.places):
            self._ticket.finished(said, order.inferences)
            self._deliver([familiar_one.bytes_with(said.places)], False)  # noqa: FBT003 - hot
            return
        outcome = exchange.outcome(said)
        made = handler.shaped(exchange, order, outcome)
        if made is None:
            self._wait(said)
            return
        self._ticket.finished(outcome, order.inferences)
        if known is not None and checked is not None and not self._plan.echo and made.size <= JOIN_LIMIT_BYTES:
            known.reply = familiar(checked, order.asked.outputs, made, said.places)
        self._send(made)

    def _send(self, made: infer_response.Reply) -> None:
        start, body = response_bytes.tensors(made, self._plan.echo)
        head = start + response_bytes.end()
        if made.size <= JOIN_LIMIT_BYTES:
            self._deliver([b"".join((head, *body))], False)  # noqa: FBT003 - hot
        else:
            self._deliver([head, *body], False)  # noqa: FBT003 - as above

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        told = handler.told(error)
        self._ticket.failed(error)
        self._deliver([response_bytes.error(told, self.request_id, self._plan.echo)], told.code in CLOSING)

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
            self.space = _NOTHING
            exchange.leave()


_NOTHING: Final = memoryview(b"")


def _nobody(_: Parts, __: bool) -> None:
    """Hears the reply to a client that is gone."""
