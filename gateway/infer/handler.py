"""`POST …/infer`: from the socket into the model's memory, to the worker, and back to the socket.

Order: the head is judged before anything is allocated; a worker is found before the body is read; the body goes to
where the model will read it; only then is it parsed. Each request is counted once, whatever became of it.

Two ways lead through here: `answer`, the handler of requests that aiohttp reads and writes, and `errand.py`, for those
that the front serves. What is decided is decided by the same functions.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol

from aiohttp.web_response import StreamResponse

from mmsup.gateway.dispatch.dispatched_request import Exchange
from mmsup.gateway.dispatch.in_flight import Said
from mmsup.gateway.dispatch.router import Backend
from mmsup.gateway.http import request_body, response
from mmsup.gateway.http.request import Call
from mmsup.gateway.infer import class_labels
from mmsup.gateway.infer.early_body import Early
from mmsup.gateway.infer.fair_queue import Turns
from mmsup.gateway.observability.request_counters import Counting, Ticket
from mmsup.gateway.protocol import binary_tensors, infer_request, infer_response, json_document
from mmsup.gateway.protocol.binary_tensors import Layout
from mmsup.gateway.protocol.infer_request import Asked
from mmsup.gateway.protocol.inference_job import Outcome, Run
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.specs import Metadata

_log = logging.getLogger("mmsup.gateway")


class Caller(Protocol):
    """Whoever's request it is; the parser notes by what name its client calls it."""

    request_id: str

    @property
    def model(self) -> str:
        """The model that the path named."""
        ...


class Order:
    """A request that was read: what to run, and how the reply shall look."""

    __slots__ = ("asked", "inferences", "metadata", "run")

    def __init__(self, asked: Asked, metadata: Metadata) -> None:
        names = [each.spec.name for each in asked.outputs]
        whole = names == [each.name for each in metadata.outputs]
        self.asked = asked
        self.metadata = metadata
        self.run = Run(asked.inputs, () if whole else names, asked.parameters, asked.priority)
        self.inferences = asked.inputs[0].shape[0] if metadata.max_batch_size and asked.inputs else 1
        """How many it counts for: the size of its own batch."""

    def without_numbers(self, run: Run) -> Order:
        """The same to be remembered: none of its client's tensors is in it. `run`: the run without them."""
        made = self.with_run(run)
        made.asked = replace(self.asked, inputs=[])
        return made

    def with_run(self, run: Run) -> Order:
        """The same for a run of the same shapes."""
        made = Order.__new__(Order)
        made.asked, made.metadata, made.inferences, made.run = self.asked, self.metadata, self.inferences, run
        return made


class Inference:
    """What both ways share; `documents` is the thread for what takes long to parse, one at a time."""

    def __init__(self, backend: Backend, counting: Counting, documents: Executor) -> None:
        self.backend = backend
        self.counting = counting
        self.turns = Turns(backend.routes)
        self._documents = documents

    async def answer(self, call: Call) -> StreamResponse:
        """The reply to a request that aiohttp reads."""
        ticket = Ticket(self.counting, call.model, call.version)
        try:
            return await self._serve(call, ticket)
        except BaseException as error:
            ticket.failed(error)
            raise

    async def _serve(self, call: Call, ticket: Ticket) -> StreamResponse:
        size = request_body.check_head(call.request, self.backend.max_body_bytes)
        early = Early(call, size, ticket.started_ns)
        async with await self.backend.open(call.model, call.version, None, early.wish) as exchange:
            ticket.serves(exchange.version)
            order = await self._read(call, exchange, size, early.body)
            exchange.request_id = call.request_id
            begin(exchange, order, ticket)
            made = await self.conclude(exchange, order, ticket, None)
            return await response.send_tensors(call.request, made, call.echo, last=self.backend.retired)

    async def _read(self, call: Call, exchange: Exchange, size: int | None, body: bytearray | None) -> Order:
        """Take the body in, unless it is there already, and read it."""
        request = call.request
        headers = request.headers.getall(binary_tensors.HEADER, [])
        if len(headers) > 1:
            raise CallerError("bad_request", f"{binary_tensors.HEADER} is given {len(headers)} times", model=call.model)
        header = headers[0] if headers else None
        if size is None:
            await request_body.accept(request)
            limit = self.backend.max_body_bytes
            limit = min(limit, binary_tensors.JSON_LIMIT_BYTES) if header is None else limit
            body = await request_body.gather(request, limit, exchange.take_bytes)
        if body is not None:
            layout = binary_tensors.layout(header, len(body))
            space = await exchange.space(layout.space)
            await request_body.lay(body, space[layout.start : layout.space])
        else:
            assert size is not None, "a body of unknown length was gathered"
            layout = binary_tensors.layout(header, size)
            space = await exchange.space(layout.space)
            await request_body.accept(request)
            await request_body.fill(request, space[layout.start : layout.space])
        if not takes_long(layout, exchange.metadata):
            return parsed(call, exchange.metadata, space, layout)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._documents, parsed, call, exchange.metadata, space, layout)

    async def conclude(
        self, exchange: Exchange, order: Order, ticket: Ticket, said: Said | None
    ) -> infer_response.Reply:
        """The reply, waiting for what must be waited for; `said`: what was heard of the request so far."""
        outcome = await exchange.go_on(order.run, said)
        made = shaped(exchange, order, outcome)
        if made is None:
            loop = asyncio.get_running_loop()
            made = await loop.run_in_executor(self._documents, _shaped_aside, exchange, order, outcome)
        ticket.finished(outcome, order.inferences)
        return made


def begin(exchange: Exchange, order: Order, ticket: Ticket) -> None:
    """The request is about to go out: its own timeout counts from when its head came."""
    if order.asked.timeout_us:
        exchange.deadline_ns = min(exchange.deadline_ns, ticket.started_ns + order.asked.timeout_us * 1000)


def takes_long(layout: Layout, metadata: Metadata) -> bool:
    """Whether a body is parsed beside the loop."""
    if layout.size <= request_body.ASIDE_BYTES:
        return False
    if layout.header > request_body.ASIDE_BYTES:
        return True
    if layout.size - layout.header <= request_body.ASIDE_BYTES or not layout.header:
        return False
    return any(each.datatype == "BYTES" for each in metadata.inputs)


def parsed(caller: Caller, metadata: Metadata, space: memoryview, layout: Layout) -> Order:
    """The request that lies in `space`. May run beside the loop: it changes nothing but the caller's own id."""
    if layout.start and not layout.header:
        return Order(
            infer_request.read_raw(binary_tensors.raw(caller.model, metadata, space, layout), metadata), metadata
        )
    value = json_document.read(space[layout.start : layout.blobs])
    caller.request_id = infer_request.request_id(value) or caller.request_id
    asked = infer_request.read(value, caller.model, metadata, binary_tensors.Blobs(space, layout.blobs, layout.space))
    return Order(asked, metadata)


def shaped(exchange: Exchange, order: Order, outcome: Outcome) -> infer_response.Reply | None:
    """The reply, or None if making it takes long or reads a file."""
    wanted = order.asked.outputs
    if any(each.classes for each in wanted):
        return None
    binary_names = {each.spec.name for each in wanted if each.binary}
    if sum(len(each.data) for each in outcome.outputs if each.name not in binary_names) > request_body.ASIDE_BYTES:
        return None
    return infer_response.shape(_origin(exchange, order, {}), wanted, outcome.outputs)


def _shaped_aside(exchange: Exchange, order: Order, outcome: Outcome) -> infer_response.Reply:
    classified = any(each.classes for each in order.asked.outputs)
    names = class_labels.of(exchange.spec) if classified else {}
    return infer_response.shape(_origin(exchange, order, names), order.asked.outputs, outcome.outputs)


def _origin(exchange: Exchange, order: Order, names: dict[str, list[str]]) -> infer_response.Origin:
    batched = exchange.metadata.max_batch_size > 0
    return infer_response.Origin(exchange.model, exchange.version, order.asked.id, batched, names)


def told(error: Exception) -> MmsupError:
    """What a client is told of the error that its request ended in; a bug of ours is logged with its trace."""
    if isinstance(error, MmsupError):
        return error
    _log.error("bug: a request ended in an error of ours", exc_info=error)
    return ServerError("internal", "an internal error; it was logged")
