"""One inference that was asked for over gRPC, from the message to its reply.

An InferCall is used in this order: `start`, then `close` when the parts of the reply have been copied, or `cancel` if
the client is gone before. It calls `deliver` or `refuse` once. It makes no task unless it must wait: for a worker, for
memory, or for what takes long to parse, copy or build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.http import request_body
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import infer_request, infer_response
from mmsup.gateway.protocol.binary_tensors import Blobs
from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.gateway.protocol.sequences.sequence_parameters import sequence_flags
from mmsup.gateway.rpc.calls.call import Parts
from mmsup.gateway.rpc.calls.messages import Message
from mmsup.gateway.rpc.infer import infer_messages, stream_replies
from mmsup.gateway.rpc.infer.infer_messages import RpcRequest
from mmsup.gateway.rpc.infer.known_messages import KnownMessage, KnownMessages, ReplyTemplate
from mmsup.gateway.sequences.sequence_turns import Turn
from mmsup.gateway.streaming.response_stream import ResponseStream
from mmsup.gateway.waking.request_wait import RequestWait
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.specs import Metadata

SLOW_BYTES: Final = request_body.THREAD_PARSE_BYTES
"""Typed contents and strings from this size on are read in another thread: each element costs."""
LARGE_BYTES: Final = 1 << 20
"""From here on raw contents are too, and are copied in steps."""
_NO_REQUEST: Final = RpcRequest("", "", "", {}, [])


class RequestBody:
    """What a request that waits for its worker tells: the whole message is here already."""

    def __init__(self, call: InferCall, held_bytes: int, on_cold: Callable[[], None]) -> None:
        self._call = call
        self.held_bytes = held_bytes
        self.on_cold = on_cold

    async def read_options(self, wait: RequestWait) -> None:
        timeout_us, wait.priority = infer_request.timeout_and_priority(self._call.request.document)
        limits = [self._call.client_deadline_ns] if self._call.client_deadline_ns else []
        if timeout_us:
            limits.append(self._call.timer.started_ns + timeout_us * 1000)
        if limits:
            wait.client_deadline_ns = min(limits)
            wait.deadline_ns = min(wait.deadline_ns, wait.client_deadline_ns)


class InferReceiver(Protocol):
    """Who gets what becomes of an inference: its reply, or an error; once, but for parts before it."""

    takes_many: bool
    """Any number of replies can be delivered."""

    def deliver(self, infer: InferCall, parts: Parts) -> None:
        """The reply, or the last of many."""

    def refuse(self, infer: InferCall, error: MmsupError) -> None: ...
    def on_cold(self) -> None:
        """The model is loaded first."""

    async def deliver_part(self, infer: InferCall, parts: Parts) -> None:
        """One reply of many; returns when its memory is not needed any more."""

    def end(self, infer: InferCall) -> None:
        """There is no further reply."""


class InferContext:
    """What the inferences of a gateway over gRPC share. `is_local`: those of listeners that only this machine can
    reach; they have `known` in common with all others."""

    def __init__(self, inference: InferHandler, known: KnownMessages, *, is_local: bool) -> None:
        self.inference = inference
        self.known = known
        self.is_local = is_local


class InferCall:
    # fmt: off
    __slots__ = (
        "_context", "_dispatched", "_known", "_parsed", "_receiver", "_task", "client_deadline_ns",
        "client_id", "request", "timer",
    )
    # fmt: on

    def __init__(
        self,
        context: InferContext,
        client_deadline_ns: int,
        receiver: InferReceiver,
    ) -> None:
        """`client_deadline_ns`: that of the call by CLOCK_MONOTONIC, 0 without one."""
        self._context = context
        self.client_deadline_ns = client_deadline_ns
        self._receiver = receiver
        self.timer = RequestTimer(context.inference.counters, "", "")
        self.request: RpcRequest
        self.client_id = ""
        """The id that the client has given its request."""
        self._dispatched: DispatchedRequest | None = None
        self._parsed: ParsedRequest | None = None
        self._known: KnownMessage | bytes | None = None
        """The known message that this one is like; or its bytes, if it may become known."""
        self._task: asyncio.Task[None] | None = None

    def start(self, message: bytes) -> None:
        """Serve a serialised ModelInferRequest."""
        try:
            if len(message) > LARGE_BYTES:
                self._spawn(partial(self._serve_slow, message, None))
                return
            found = self._context.known.find(message)
            if found is not None:
                self._known, request = found
                self.client_id = request.id
                self._take(request)
                return
            parsed = infer_messages.parse_message(message)
            if len(message) > SLOW_BYTES and not parsed.raw_input_contents:
                self._spawn(partial(self._serve_slow, message, parsed))
            else:
                self._known = message
                self.client_id = parsed.id[: infer_request.ID_LIMIT]
                self._take(infer_messages.read_request(parsed))
        except Exception as error:  # noqa: BLE001 - the outermost level of a request: the client gets an answer
            self.fail(error)

    def _take(self, request: RpcRequest) -> None:
        """Wait for the model's turn."""
        self.request = request
        self.timer.model, self.timer.version = request.model, request.version
        queue = self._context.inference.fair_queue
        if queue.try_start(request.model, COST):
            self._open()
        else:
            queue.enqueue(request.model, COST, self._start_queued)

    def _start_queued(self) -> bool:
        if self._receiver is _NOBODY:
            return False
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - as in `start`
            self.fail(error)
        return True

    def _open(self) -> None:
        """Find a worker, and send the request; in a task if something must be waited for."""
        request = self.request
        dispatched = self._context.inference.router.try_open(request.model, request.version)
        if dispatched is None:
            self._spawn(self._serve)
            return
        self._dispatched = dispatched
        if dispatched.metadata.decoupled:
            self._spawn(self._serve)
            return
        size = request.blob_bytes
        buffer = None if _is_slow_to_check(request, dispatched.metadata) else dispatched.try_allocate(size)
        if buffer is None:
            self._spawn(self._serve)
            return
        at = 0
        for each in request.blobs:
            buffer[at : at + len(each)] = each
            at += len(each)
        parsed = self._parse(dispatched, buffer)
        is_slow = dispatched.spec.response_cache or not parsed.is_cacheable
        if is_slow or not dispatched.try_infer(parsed.job, self._on_event):
            self._spawn(partial(self._finish, None))

    def _parse(self, dispatched: DispatchedRequest, buffer: memoryview) -> ParsedRequest:
        """Check the request against the metadata of its model, and apply what it asks for."""
        request, metadata, known, version = self.request, dispatched.metadata, self._known, dispatched.spec.version
        if metadata.decoupled and not self._receiver.takes_many:
            raise infer_request.decoupled_error(request.model)
        if isinstance(known, KnownMessage) and known.is_good_for(version, metadata):
            parsed = known.parsed
        else:
            blobs = Blobs(buffer, 0, request.blob_bytes)
            parsed = ParsedRequest(
                infer_request.parse_request(request.document, request.model, metadata, blobs, may_stream=True),
                metadata,
            )
            if parsed.request.sequence is not None:
                self._known = None
            elif isinstance(known, bytes):
                self._known = self._context.known.add(known, request, parsed, version)
            elif known is not None:
                known.renew(parsed, version)
        self._parsed = parsed
        self.timer.version = version
        dispatched.request_id = request.id
        handler.apply_timeout(dispatched, parsed, self.timer)
        if self.client_deadline_ns:
            other = dispatched.client_deadline_ns
            dispatched.client_deadline_ns = min(other, self.client_deadline_ns) if other else self.client_deadline_ns
            dispatched.deadline_ns = min(dispatched.deadline_ns, self.client_deadline_ns)
        return parsed

    # The reply.

    def _on_event(self, event: RequestEvent) -> None:
        dispatched, parsed = self._dispatched, self._parsed
        assert dispatched is not None, "an event came for a request that was not started"
        assert parsed is not None, "an event came for a request that was not started"
        try:
            if type(event) is not InferReply or event.needed_bytes or _is_slow_to_build(parsed):
                self._spawn(partial(self._finish, event))
                return
            result = dispatched.result(event)
            self._send(dispatched, parsed, result, handler.response_context(dispatched, parsed))
        except Exception as error:  # noqa: BLE001 - as in `start`
            self.fail(error)

    def _send(
        self,
        dispatched: DispatchedRequest,
        parsed: ParsedRequest,
        result: InferenceResult,
        context: infer_response.ResponseContext,
    ) -> None:
        signature = dispatched.in_flight.signature if dispatched.in_flight is not None else None
        known = self._known if isinstance(self._known, KnownMessage) else None
        if known is not None and known.version != dispatched.spec.version:  # another worker has run it in the end
            known = None
        parts = None
        if known is not None and known.reply is not None and signature is not None:
            parts = known.reply.fill(signature.packed, result.outputs)
        if parts is None:
            outputs = parsed.request.outputs
            tensors = infer_response.wanted_tensors(context, outputs, result.outputs)
            spec = dispatched.spec
            origin = spec.name, spec.version, parsed.request.id
            regions: list[dict[str, Any]] = []  # JSON scalars
            if parsed.uses_regions:
                pairs = zip(outputs, tensors, strict=True)
                regions = [infer_response.region_parameters(each, tensor.data.nbytes) for each, tensor in pairs]
            parts = infer_messages.response_parts(origin, tensors, regions=regions)
            is_constant = all(each.spec.datatype != "BYTES" and not each.classes for each in outputs)
            if known is not None and signature is not None and is_constant:
                names = [each.spec.name for each in outputs]
                known.reply = ReplyTemplate(signature.packed, result.outputs, names, parts)
        self.timer.finish(result.reply, parsed.inference_count)
        self.request.blobs.clear()  # the reply may wait long for its client
        self._receiver.deliver(self, parts)

    def fail(self, error: Exception) -> None:
        model = getattr(error, "model", "")
        if not self.timer.model and model in self._context.inference.router.routes:  # not any name that clients make up
            self.timer.model = model
        self.timer.fail(error)
        self._receiver.refuse(self, handler.client_error(error))

    # What waits.

    def _spawn(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(_answered(self, work), name="infer")

    async def _serve_slow(self, message: bytes, parsed: Message | None) -> None:
        """`parsed`: if it was parsed already."""
        loop, executor = asyncio.get_running_loop(), self._context.inference.parser_executor
        if parsed is None:
            parsed = await loop.run_in_executor(executor, infer_messages.parse_message, message)
        made: Message = parsed
        self.client_id = made.id[: infer_request.ID_LIMIT]
        request = await loop.run_in_executor(executor, infer_messages.read_request, made)
        self._task = None
        self._take(request)

    async def _serve(self) -> None:
        """Find a worker and memory, waiting for both, and serve the request. What comes behind it in its sequence
        waits too."""
        request, size = self.request, self.request.blob_bytes
        flags = sequence_flags(request.document["parameters"])
        with self._context.inference.sequences.turn(request.model, request.version, flags) as turn:
            dispatched = self._dispatched
            if dispatched is None:
                body = RequestBody(self, size, self._receiver.on_cold)
                dispatched = await self._context.inference.router.open(request.model, request.version, None, body)
                self._dispatched = dispatched
            buffer = await dispatched.allocate(size)
            at = 0
            for each in request.blobs:
                await request_body.copy_in_steps(each, buffer[at : at + len(each)])
                at += len(each)
            if _is_slow_to_check(request, dispatched.metadata):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._context.inference.parser_executor, self._parse, dispatched, buffer)
            else:
                self._parse(dispatched, buffer)
            if not dispatched.metadata.decoupled:
                await self._finish(None, turn)
                return
        receiver, parsed, router = self._receiver, self._parsed, self._context.inference.router
        assert parsed is not None, "a request was opened and not parsed"
        responses = ResponseStream(dispatched, parsed.job, router, self.timer)
        await stream_replies.deliver_all(responses, dispatched, parsed, partial(receiver.deliver_part, self))
        self.timer.finish(responses.last_reply, parsed.inference_count)
        if request.wants_final:
            receiver.deliver(self, stream_replies.final_reply(dispatched, parsed))
        else:
            receiver.end(self)

    async def _finish(self, event: RequestEvent | None, turn: Turn | None = None) -> None:
        """Wait for the rest; `event` is None if the request was not sent."""
        dispatched, parsed = self._dispatched, self._parsed
        assert dispatched is not None, "a request waits before it is opened"
        assert parsed is not None, "a request waits before it is parsed"
        inference = self._context.inference
        if parsed.uses_regions:
            result = await inference.infer_with_regions(dispatched, parsed, turn, is_local=self._context.is_local)
        else:
            result = await inference.infer(dispatched, parsed, event, turn)
        if _is_slow_to_build(parsed):
            loop = asyncio.get_running_loop()
            executor = self._context.inference.parser_executor
            context = await loop.run_in_executor(executor, _labelled_context, dispatched, parsed)
        else:
            context = handler.response_context(dispatched, parsed)
        self._send(dispatched, parsed, result, context)

    # The end.

    def cancel(self) -> None:
        """The client is gone: nothing is delivered."""
        self._receiver = _NOBODY
        self.timer.fail(asyncio.CancelledError())
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self.close())
        else:
            self.close()

    def close(self) -> None:
        """Free everything; none of the reply's memory may be used any more."""
        dispatched, self._dispatched = self._dispatched, None
        if dispatched is not None:
            dispatched.close()
        self._receiver = _NOBODY  # it refers back to this: the cycle would keep the message
        self._known = self._parsed = None
        self.request = _NO_REQUEST


COST: Final = 2
"""In the fair queue: between a fast request of HTTP and one that aiohttp serves."""


async def _answered(call: InferCall, work: Callable[[], Coroutine[object, object, None]]) -> None:
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - the outermost level of a request: the client gets an answer
        call.fail(error)


def _is_slow_to_check(request: RpcRequest, metadata: Metadata) -> bool:
    size = request.blob_bytes
    has_strings = size > SLOW_BYTES and any(each.datatype == "BYTES" for each in metadata.inputs)
    return size > LARGE_BYTES or has_strings


def _is_slow_to_build(parsed: ParsedRequest) -> bool:
    return any(each.classes for each in parsed.request.outputs)


def _labelled_context(dispatched: DispatchedRequest, parsed: ParsedRequest) -> infer_response.ResponseContext:
    return handler.response_context(dispatched, parsed, read_labels=True)


class _Nobody:
    """Gets the outcome of a call whose client is gone."""

    takes_many = False

    def deliver(self, infer: InferCall, parts: Parts) -> None: ...
    def refuse(self, infer: InferCall, error: MmsupError) -> None: ...
    def on_cold(self) -> None: ...
    async def deliver_part(self, infer: InferCall, parts: Parts) -> None: ...
    def end(self, infer: InferCall) -> None: ...


_NOBODY: Final = _Nobody()
