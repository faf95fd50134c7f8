"""What each kind of method does with one call: one message and one reply, a message and replies, many of both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from mmsup.gateway.http.response import WRITE_TIMEOUT_S
from mmsup.gateway.infer.handler import client_error
from mmsup.gateway.rpc.calls import status
from mmsup.gateway.rpc.calls.call import Parts, RpcCall
from mmsup.gateway.rpc.calls.messages import Message, message_class
from mmsup.gateway.rpc.infer import infer_messages
from mmsup.gateway.rpc.infer.infer_call import InferCall, InferReceiver
from mmsup.ipc.errors import CallerError, MmsupError, ServerError

_STREAM_REPLY: Final = message_class("inference.ModelStreamInferResponse")
COLD_METADATA: Final = (b"x-mmsup-cold", b"1")
OPEN_LIMIT: Final = 1024
"""Inferences of one stream that are not answered yet: from here on its client has to wait."""
MOVES: Final = "this stream ends here, as the process that serves it is replaced or stops: open another one"
MakeInfer = Callable[[InferReceiver], InferCall]


class UnaryCall:
    """One message, one reply by a coroutine. `timeout_s`: of the call, None without one."""

    def __init__(self, call: RpcCall, answer: Callable[[bytes], Awaitable[Message]], timeout_s: float | None) -> None:
        self._call = call
        self._answer = answer
        self._timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None

    def on_message(self, message: bytes) -> None:
        if self._task is not None:
            self._call.fail(CallerError("bad_request", "more than one message for a method that takes one"))
            self.on_cancel()
            return
        self._task = asyncio.get_running_loop().create_task(self._run(message), name="call")

    def on_half_close(self) -> None:
        if self._task is None:
            self._call.fail(CallerError("bad_request", "the call has no message"))

    async def _run(self, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await self._answer(message)
        except TimeoutError:
            self._call.fail(ServerError("deadline_exceeded", "Request timeout expired before there was an answer"))
        except Exception as error:  # noqa: BLE001 - the outermost level of a call: the client gets an answer
            self._call.fail(client_error(error))
        else:
            self._call.reply([reply.SerializeToString()])
            self._call.finish()

    def on_cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def on_sent(self) -> None:
        """The reply has memory of its own."""

    def on_retire(self) -> None:
        """It ends by itself."""


class ModelInferCall:
    """One ModelInferRequest, one ModelInferResponse."""

    takes_many = False

    def __init__(self, call: RpcCall, make_infer: MakeInfer) -> None:
        self._call = call
        self._infer = make_infer(self)
        self._is_started = False
        self._is_delivered = False

    def on_message(self, message: bytes) -> None:
        if self._is_started:
            self._call.fail(CallerError("bad_request", "more than one message for a method that takes one"))
            self.on_cancel()
            return
        self._is_started = True
        self._infer.start(message)

    def on_half_close(self) -> None:
        if not self._is_started:
            self._call.fail(CallerError("bad_request", "the call has no message"))

    def on_cold(self) -> None:
        self._call.metadata.append(COLD_METADATA)

    def deliver(self, infer: InferCall, parts: Parts) -> None:
        del infer
        self._is_delivered = True
        self._call.reply(parts)  # calls `on_sent`, at once unless the client reads slowly
        self._call.finish()

    def refuse(self, infer: InferCall, error: MmsupError) -> None:
        self._call.fail(error)
        infer.close()

    async def deliver_part(self, infer: InferCall, parts: Parts) -> None:
        raise AssertionError(f"a call with one reply gets a part of many: {infer}, {len(parts)}")

    def end(self, infer: InferCall) -> None:
        raise AssertionError(f"a call with one reply gets none: {infer}")

    def on_cancel(self) -> None:
        if not self._is_delivered:
            self._infer.cancel()

    def on_sent(self) -> None:
        self._infer.close()

    def on_retire(self) -> None:
        """It ends by itself."""


class ModelStreamInferCall:
    """Many ModelInferRequests, each with its replies: requests run side by side, and each is answered when it is done.
    An error is a reply; with `triton_grpc_error: true` in the metadata of the call it ends the stream instead. A model
    that answers many times is read as fast as the client reads."""

    takes_many = True

    def __init__(self, call: RpcCall, make_infer: MakeInfer, *, ends_at_error: bool, timeout_s: float | None) -> None:
        self._call = call
        self._make_infer = make_infer
        self._ends_at_error = ends_at_error
        self._running: dict[InferCall, int] = {}
        """With the size of the message of each."""
        self._unsent: list[InferCall] = []
        self._part_waiters: list[asyncio.Future[None]] = []
        """Of parts that wait until they have left."""
        self._is_half_closed = False
        self._is_retired = False
        self._timer: asyncio.TimerHandle | None = None
        if timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._on_deadline)

    def on_message(self, message: bytes) -> None:
        infer = self._make_infer(self)
        if self._is_retired:
            infer.fail(ServerError("draining", MOVES))
            self._call.release(len(message))
            return
        if len(self._running) >= OPEN_LIMIT:
            infer.fail(ServerError("queue_full", f"{OPEN_LIMIT} requests of this stream wait for their answers"))
            self._call.release(len(message))
            return
        self._running[infer] = len(message)
        infer.start(message)

    def on_half_close(self) -> None:
        self._is_half_closed = True
        self._finish_if_done()

    def on_cold(self) -> None:
        """The headers of a stream may have gone already."""

    def deliver(self, infer: InferCall, parts: Parts) -> None:
        self._unsent.append(infer)
        self._call.reply(infer_messages.stream_parts(parts))
        self._end(infer)

    def refuse(self, infer: InferCall, error: MmsupError) -> None:
        infer.close()
        if self._ends_at_error:
            self._running.pop(infer, None)
            self._call.fail(error)
            self.on_cancel()
            return
        shown = _STREAM_REPLY(error_message=status.message(error))
        shown.infer_response.id = infer.client_id
        self._call.reply([shown.SerializeToString()])
        self._end(infer)

    async def deliver_part(self, infer: InferCall, parts: Parts) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._part_waiters.append(waiter)
        self._call.reply(infer_messages.stream_parts(parts))  # calls `on_sent` at once unless the client reads slowly
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await waiter
        except TimeoutError:
            self._running.pop(infer, None)
            error = ServerError("cancelled", "the client did not read its responses")
            self._call.fail(error)
            self.on_cancel()
            raise error from None

    def end(self, infer: InferCall) -> None:
        infer.close()
        self._end(infer)

    def _end(self, infer: InferCall) -> None:
        self._call.release(self._running.pop(infer, 0))
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._running:
            return
        if self._is_half_closed:
            self._cancel_timer()
            self._call.finish()
        elif self._is_retired:
            self._cancel_timer()
            self._call.fail(ServerError("draining", MOVES))

    def on_retire(self) -> None:
        self._is_retired = True
        self._finish_if_done()

    def _on_deadline(self) -> None:
        self._call.fail(ServerError("deadline_exceeded", "Request timeout expired: the deadline of the stream"))
        self.on_cancel()

    def on_cancel(self) -> None:
        self._cancel_timer()
        running, self._running = list(self._running), {}
        for each in running:
            each.cancel()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_sent(self) -> None:
        waiters, self._part_waiters = self._part_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        unsent, self._unsent = self._unsent, []
        for each in unsent:
            each.close()


class WatchCall:
    """One message, replies until the client is gone."""

    def __init__(
        self,
        call: RpcCall,
        request_class: type[Message],
        watch: Callable[[Message, Callable[[Message], None]], Callable[[], None]],
    ) -> None:
        """`watch` sends replies by the function that it gets, until the one that it returns is called."""
        self._call = call
        self._request_class = request_class
        self._watch = watch
        self._stop: Callable[[], None] | None = None

    def on_message(self, message: bytes) -> None:
        try:
            request = infer_messages.parse(self._request_class, message)
        except MmsupError as error:
            self._call.fail(error)
            return
        if self._stop is None:
            self._stop = self._watch(request, self._send)

    def _send(self, reply: Message) -> None:
        self._call.reply([reply.SerializeToString()])

    def on_half_close(self) -> None:
        if self._stop is None:
            self._call.fail(CallerError("bad_request", "the call has no message"))

    def on_cancel(self) -> None:
        if self._stop is not None:
            self._stop()

    def on_sent(self) -> None:
        """The replies have memory of their own."""

    def on_retire(self) -> None:
        self.on_cancel()
        self._call.fail(ServerError("draining", MOVES))


class PingPongCall:
    """Many messages, each answered at once."""

    def __init__(self, call: RpcCall, request_class: type[Message], answer: Callable[[Message], Message]) -> None:
        self._call = call
        self._request_class = request_class
        self._answer = answer

    def on_message(self, message: bytes) -> None:
        try:
            request = infer_messages.parse(self._request_class, message)
        except MmsupError as error:
            self._call.fail(error)
            return
        self._call.reply([self._answer(request).SerializeToString()])
        self._call.release(len(message))

    def on_half_close(self) -> None:
        self._call.finish()

    def on_cancel(self) -> None:
        """Nothing goes on between two messages."""

    def on_sent(self) -> None:
        """The replies have memory of their own."""

    def on_retire(self) -> None:
        self._call.fail(ServerError("draining", MOVES))
