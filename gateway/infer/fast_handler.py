"""One inference on the fast way: from its plan to the bytes of its reply, without a task unless something must wait.

Who calls: `front.py`, in this order: `opened`, then `run` when the body lies in `space`, then `leave` when the bytes
that it was given are in the socket, or `cancel` if the client goes away before. The errand calls back once, with a
reply. What takes waiting (a larger grant, the end of a worker's life, a long text) is left to a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.http import response_bytes
from mmsup.gateway.http.error_status import CLOSING
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.request_cache import CachedJsonRequest, CachedRequest, RequestCache
from mmsup.gateway.infer.response_template import make_template
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import infer_response, json_template
from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.data import InferReply

JOIN_LIMIT_BYTES: Final = 1 << 16
"""Replies up to this size are copied once and sent in one piece."""
Deliver = Callable[[Parts, bool], None]
"""What goes to the client, in memory that may be free only after `leave`; whether the connection ends with it."""


class FastInfer:
    """One request; its client's connection owns it."""

    __slots__ = (
        "_cached",
        "_deliver",
        "_dispatched",
        "_handler",
        "_head",
        "_parsed",
        "_request_cache",
        "_task",
        "_timer",
        "body",
        "request_id",
    )

    def __init__(self, core: InferHandler, orders: RequestCache, plan: ParsedHead, deliver: Deliver) -> None:
        self._handler = core
        self._request_cache = orders
        self._head = plan
        self._deliver = deliver
        self._timer = RequestTimer(core.counters, plan.model, plan.version)
        self._dispatched: DispatchedRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._cached: CachedRequest | None = None
        self._parsed: ParsedRequest | None = None
        self.request_id = plan.request_id

    @property
    def model(self) -> str:
        """The model that the path named."""
        return self._head.model

    def open(self) -> bool:
        """Find a worker and room for the body; False if something must be waited for, MmsupError if it cannot be."""
        plan, backend = self._head, self._handler.router
        exchange = backend.try_open(plan.model, plan.version)
        if exchange is None:
            return False
        self._dispatched = exchange
        if plan.is_fast_to_parse or not handler.is_slow_to_parse(plan.layout, exchange.metadata):
            space = exchange.try_allocate(plan.layout.space)
            if space is not None:
                self.body: memoryview = space
                """Where the body goes, all of it: what lies before `Layout.start` is ours."""
                self._timer.set_version(exchange.version)
                return True
        self.close()
        return False

    def start(self) -> None:
        """The body has come: read it and send it to the worker."""
        exchange = self._dispatched
        assert exchange is not None, "an errand is run once it was opened"
        try:
            order = self._parsed = self._parse(exchange)
            exchange.request_id = self.request_id
            if order.request.timeout_us:
                handler.apply_timeout(exchange, order, self._timer)
            if not exchange.try_infer(order.job, self._on_event):
                self._finish_in_task(None)
        except Exception as error:  # noqa: BLE001 - the outermost loop of a request: the client has its answer
            self.fail(error)

    # Reading.

    def _parse(self, exchange: DispatchedRequest) -> ParsedRequest:
        plan = self._head
        if plan.has_cacheable_json:
            return self._parse_binary(exchange)
        if plan.has_cacheable_text:
            return self._parse_json(exchange)
        return handler.parse_request(self, exchange.metadata, self.body, plan.layout)

    def _parse_binary(self, exchange: DispatchedRequest) -> ParsedRequest:
        plan, metadata = self._head, exchange.metadata
        words = (plan, bytes(self.body[plan.layout.start : plan.layout.blobs_start]))
        known = self._request_cache.get(words, exchange.version, metadata)
        if known is None:
            order = handler.parse_request(self, metadata, self.body, plan.layout)
            if any(each.datatype == "BYTES" for each in metadata.inputs):
                return order  # whether strings fit is seen in the bytes themselves, each time
            known = CachedRequest(order, exchange.version)
            self._request_cache.put(words, known)
        self._cached = known
        self.request_id = known.parsed.request.id or self.request_id
        return known.parsed

    def _parse_json(self, exchange: DispatchedRequest) -> ParsedRequest:
        """A body of JSON: if only its numbers are new, only these are read."""
        plan, metadata = self._head, exchange.metadata
        parts = json_template.split_template(bytes(self.body))
        if parts is None:
            return handler.parse_request(self, metadata, self.body, plan.layout)
        words = (plan.model, *parts[0])
        known = self._request_cache.get(words, exchange.version, metadata)
        if isinstance(known, CachedJsonRequest) and (order := known.with_data(parts[1])) is not None:
            return self._use_cached(known, order)
        order = handler.parse_request(self, metadata, self.body, plan.layout)
        names = json_template.input_names(parts[0])
        if names is None or known is not None:
            return order
        known = CachedJsonRequest(order, exchange.version, names)
        self._request_cache.put(words, known)
        return self._use_cached(known, order)

    def _use_cached(self, known: CachedRequest, order: ParsedRequest) -> ParsedRequest:
        self._cached = known
        if order.request.id:
            self.request_id = order.request.id
        return order

    # The reply.

    def _on_event(self, said: RequestEvent) -> None:
        try:
            if type(said) is not InferReply or said.needed_bytes:
                self._finish_in_task(said)
            else:
                self._on_reply(said)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self.fail(error)

    def _on_reply(self, said: InferReply) -> None:
        exchange, order, known = self._dispatched, self._parsed, self._cached
        assert exchange is not None, "a reply came for an errand that was not run"
        assert order is not None, "a reply came for an errand that was not run"
        checked = exchange.output_signature
        familiar_one = known.response if known is not None and not self._head.echo else None
        if familiar_one is not None and checked is not None and familiar_one.matches(checked, said.locations):
            self._timer.finish(said, order.inference_count)
            self._deliver([familiar_one.render(said.locations)], False)  # noqa: FBT003 - hot
            return
        outcome = exchange.result(said)
        made = handler.build_response(exchange, order, outcome)
        if made is None:
            self._finish_in_task(said)
            return
        self._timer.finish(outcome, order.inference_count)
        if known is not None and checked is not None and not self._head.echo and made.size <= JOIN_LIMIT_BYTES:
            known.response = make_template(checked, order.request.outputs, made, said.locations)
        self._send(made)

    def _send(self, made: infer_response.InferResponse) -> None:
        start, body = response_bytes.inference_parts(made, self._head.echo)
        head = start + response_bytes.head_end()
        if made.size <= JOIN_LIMIT_BYTES:
            self._deliver([b"".join((head, *body))], False)  # noqa: FBT003 - hot
        else:
            self._deliver([head, *body], False)  # noqa: FBT003 - as above

    def fail(self, error: Exception) -> None:
        """Answer with an error."""
        told = handler.client_error(error)
        self._timer.fail(error)
        self._deliver([response_bytes.error_bytes(told, self.request_id, self._head.echo)], told.code in CLOSING)

    # What waits.

    def _finish_in_task(self, said: RequestEvent | None) -> None:
        self._task = asyncio.get_running_loop().create_task(self._finish(said), name="errand")

    async def _finish(self, said: RequestEvent | None) -> None:
        exchange, order = self._dispatched, self._parsed
        assert exchange is not None, "an errand waits once it was opened"
        assert order is not None, "an errand waits once its body was read"
        try:
            made = await self._handler.finish(exchange, order, self._timer, said)
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._task = None
            self.fail(error)
            return
        self._task = None
        self._send(made)

    # The end.

    def on_body_timeout(self, error: CallerError) -> None:
        """The body did not come in time."""
        self.fail(error)

    def cancel(self) -> None:
        """The client went away: nobody is told anything."""
        self._deliver = _discard
        self._timer.fail(asyncio.CancelledError())
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self.close())
        else:
            self.close()

    def close(self) -> None:
        """No byte of it is used any more."""
        exchange, self._dispatched = self._dispatched, None
        if exchange is not None:
            self.body = _EMPTY
            exchange.close()


_EMPTY: Final = memoryview(b"")


def _discard(_: Parts, __: bool) -> None:
    """Hears the reply to a client that is gone."""
