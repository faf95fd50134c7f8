"""`POST …/infer`: from the socket into the model's memory, to the worker, and back to the socket.

Order: the head is judged before anything is allocated; a worker is found before the body is read; the body goes to
where the model will read it; only then is it parsed. Each request is counted once, whatever became of it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final

from aiohttp.web_response import StreamResponse

from mmsup.gateway import answer, binary, document, labels, reply, upload, v2
from mmsup.gateway.backend import Backend
from mmsup.gateway.binary import Layout
from mmsup.gateway.call import Call
from mmsup.gateway.counting import Counting, Ticket
from mmsup.gateway.exchange import Exchange, Outcome, Run
from mmsup.ipc.errors import CallerError

ASIDE_BYTES: Final = 1 << 18
"""From here on parsing is done beside the loop: it takes milliseconds."""


class Inference:
    """The handler; `documents` is the thread for what takes long to parse, one at a time."""

    def __init__(self, backend: Backend, counting: Counting, documents: Executor) -> None:
        self._backend = backend
        self._counting = counting
        self._documents = documents

    async def answer(self, call: Call) -> StreamResponse:
        """The reply to one request."""
        ticket = Ticket(self._counting, call.model, call.version)
        try:
            return await self._serve(call, ticket)
        except BaseException as error:
            ticket.failed(error)
            raise

    async def _serve(self, call: Call, ticket: Ticket) -> StreamResponse:
        size = upload.check_head(call.request, self._backend.max_body_bytes)
        async with await self._backend.open(call.model, call.version, None) as exchange:
            ticket.serves(exchange.version)
            asked = await self._asked(call, exchange, size)
            if asked.timeout_us:
                exchange.deadline_ns = min(exchange.deadline_ns, ticket.started_ns + asked.timeout_us * 1000)
            names = [each.spec.name for each in asked.outputs]
            whole = names == [each.name for each in exchange.metadata.outputs]
            outcome = await exchange.infer(Run(asked.inputs, () if whole else names, asked.parameters))
            origin = await self._origin(call, exchange, asked)
            made = await self._shaped(origin, asked, outcome)
            batch = asked.inputs[0].shape[0] if origin.batched and asked.inputs else 1
            ticket.finished(outcome, batch)
            return await answer.send_tensors(call.request, made, call.echo)

    async def _asked(self, call: Call, exchange: Exchange, size: int | None) -> v2.Asked:
        """Take the body in and read it."""
        request = call.request
        headers = request.headers.getall(binary.HEADER, [])
        if len(headers) > 1:
            raise CallerError("bad_request", f"{binary.HEADER} is given {len(headers)} times", model=call.model)
        header = headers[0] if headers else None
        if size is None:
            await upload.accept(request)
            body = await upload.gather(request, self._backend.max_body_bytes)
            layout = binary.layout(header, len(body))
            space = await exchange.space(layout.space)
            space[layout.start : layout.space] = body
        else:
            layout = binary.layout(header, size)
            space = await exchange.space(layout.space)
            await upload.accept(request)
            await upload.fill(request, space[layout.start : layout.space])
        if not _takes_long(layout, exchange):
            return _parsed(call, exchange, space, layout)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._documents, _parsed, call, exchange, space, layout)

    async def _shaped(self, origin: reply.Origin, asked: v2.Asked, outcome: Outcome) -> reply.Reply:
        binary_names = {each.spec.name for each in asked.outputs if each.binary}
        if sum(len(each.data) for each in outcome.outputs if each.name not in binary_names) <= ASIDE_BYTES:
            return reply.shape(origin, asked.outputs, outcome.outputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._documents, reply.shape, origin, asked.outputs, outcome.outputs)

    async def _origin(self, call: Call, exchange: Exchange, asked: v2.Asked) -> reply.Origin:
        names: dict[str, list[str]] = {}
        if any(each.classes for each in asked.outputs):
            loop = asyncio.get_running_loop()
            names = await loop.run_in_executor(self._documents, labels.of, exchange.spec)
        batched = exchange.metadata.max_batch_size > 0
        return reply.Origin(call.model, exchange.version, asked.id, batched, names)


def _takes_long(layout: Layout, exchange: Exchange) -> bool:
    if layout.header > ASIDE_BYTES:
        return True
    has_strings = any(each.datatype == "BYTES" for each in exchange.metadata.inputs)
    return has_strings and layout.header > 0 and layout.size - layout.header > ASIDE_BYTES


def _parsed(call: Call, exchange: Exchange, space: memoryview, layout: Layout) -> v2.Asked:
    """The request that lies in `space`. May run beside the loop: it changes nothing but the call's own id."""
    metadata = exchange.metadata
    if layout.start and not layout.header:
        return v2.read_raw(binary.raw(call.model, metadata, space, layout), metadata)
    value = document.read(space[layout.start : layout.blobs])
    call.request_id = v2.request_id(value) or call.request_id
    return v2.read(value, call.model, metadata, binary.Blobs(space, layout.blobs, layout.space))
