"""Calls of other models: `context.infer` and `context.infer_async` of a Python class.

A call goes over the link of the requests that run now, to their gateway, which serves it as any other request. While
the worker's one thread waits for the answer it reads that link, so the answer can come; whatever else comes over it is
kept for later. What is bounded here: how many calls a run has open at once, and how long they are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from mmsup.ipc.messages.calls import CallReply, EndCall, GrantCall
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import CallRecord, pack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES
from mmsup.worker.calls.caller import CALLER
from mmsup.worker.calls.link_reader import RETRY_MS, WAIT_MS, LinkReader
from mmsup.worker.calls.open_call import OpenCall
from mmsup.worker.calls.transport import CallingRun, CallLink, CallTransport
from mmsup.worker.execution.call_error import CallError

OPEN_LIMIT: Final = 64
"""Calls of one run that may be open at once; the gateway has the same bound."""


class ModelCalls:
    """Of one model; its engine makes it, and the loop that serves the model connects it."""

    def __init__(self) -> None:
        self._transport: CallTransport | None = None
        self._thread = 0
        self._open: dict[int, OpenCall] = {}
        self._last_id = 0
        self._unsent: list[tuple[CallLink, bytes]] = []
        self._reader = LinkReader(self._look)

    def connect(self, transport: CallTransport) -> None:
        """Called when the model serves, by the thread that runs it."""
        self._transport, self._thread = transport, threading.get_ident()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],  # arrays, or what NumPy makes arrays of
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,  # scalars
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Run another model and wait for its outputs; CallError if there are none. `outputs`: names, empty for all."""
        transport, call = self._begin(model, inputs, version, outputs, parameters, timeout_s)
        transport.begin_wait()
        try:
            while call.reply is None:
                self._flush()
                self._receive(call.link)
                if call.reply is None:
                    transport.wait(call.link, RETRY_MS if self._unsent else WAIT_MS)
                    transport.beat()
            return call.outputs(transport.model)
        finally:
            self._end(call)
            transport.end_wait()

    async def infer_async(
        self,
        model: str,
        inputs: Mapping[str, Any],  # as above
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,  # scalars
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """The same for code that runs in an event loop, so that several models can be called at a time."""
        import asyncio  # noqa: PLC0415 - takes 30 ms of a start; code that comes here has imported it

        loop, caller = asyncio.get_running_loop(), CALLER.get()
        is_turned = caller is not None and caller.loop is loop
        asked = model, inputs, version, outputs, parameters, timeout_s
        transport, call = self._begin(*asked, blocks=not is_turned)
        call.future = loop.create_future()
        if call.reply is not None:  # it was not sent
            call.future.set_result(None)
        if is_turned:  # the worker's loop goes on, and reads the link
            try:
                await call.future
                return call.outputs(transport.model)
            finally:
                self._end(call)
        transport.begin_wait()
        self._reader.add(loop, transport, call.link)
        try:
            await call.future
            return call.outputs(transport.model)
        finally:
            self._end(call)
            self._reader.remove(loop, call.link)
            transport.end_wait()

    def is_waiting(self, number: int) -> bool:
        """Whether a call for this request is open."""
        return any(number in each.parents for each in self._open.values())

    # One call.

    def _begin(
        self,
        model: str,
        inputs: Mapping[str, Any],  # as above
        version: str,
        outputs: Sequence[str],
        parameters: Mapping[str, Any] | None,  # scalars
        timeout_s: float | None,
        *,
        blocks: bool = True,
    ) -> tuple[CallTransport, OpenCall]:
        transport, run = self._calling_run(model)
        if len(self._open) >= OPEN_LIMIT:
            text = f"model '{transport.model}' has {OPEN_LIMIT} calls open, as many as a run may have at once"
            raise CallError("queue_full", text, model=model, retryable=True)
        self._last_id = number = self._last_id + 1
        call = OpenCall(number, replace(run, blocks=blocks), model, inputs)
        deadline_ns = time.monotonic_ns() + int(max(timeout_s, 0) * 1e9) if timeout_s is not None else 0
        frame = _frame(call, str(version), outputs, parameters or {}, deadline_ns)
        self._open[number] = call
        self._unsent.append((call.link, frame))
        self._flush()
        return transport, call

    def _calling_run(self, model: str) -> tuple[CallTransport, CallingRun]:
        transport = self._transport
        run = transport.run() if transport is not None and threading.get_ident() == self._thread else None
        if transport is None or run is None:
            text = f"model '{model}' cannot be called here: only infer calls other models, in the thread that runs it"
            raise CallError("unavailable", f"{text}, while it serves a request", model=model)
        return transport, run

    def _end(self, call: OpenCall) -> None:
        """The caller waits no more: have the call cancelled, or the memory of its outputs freed."""
        del self._open[call.number]
        reply, call.reply = call.reply, None
        holds_memory = reply is not None and any(isinstance(each, tuple) for each in reply.locations)
        if reply is None or holds_memory:
            self._send(call.link, EndCall(call.number))

    # The link.

    def _send(self, link: CallLink, record: CallRecord) -> None:
        self._unsent.append((link, pack_frame([record])))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            link, frame = self._unsent[0]
            try:
                if not link.send(frame):
                    return
            except ChannelClosed:
                self._on_closed(link)
                return
            del self._unsent[0]

    def _receive(self, link: CallLink) -> None:
        assert self._transport is not None, "a call is open and the model serves nothing"
        try:
            records = self._transport.receive(link)
        except ChannelClosed:
            self._on_closed(link)
            return
        self.on_records(link, records)

    def on_records(self, link: CallLink, records: Sequence[GrantCall | CallReply]) -> None:
        """What has come about calls over a link."""
        for record in records:
            call = self._open.get(record.id)
            if call is None or call.link is not link:
                continue  # it has ended
            if isinstance(record, GrantCall):
                self._send(link, call.on_grant(record))
            else:
                call.finish(record)

    def _look(self, link: CallLink) -> bool:
        self._flush()
        self._receive(link)
        return bool(self._unsent)

    def _on_closed(self, link: CallLink) -> None:
        """The gateway has ended, and so has the request that called."""
        self._unsent = [each for each in self._unsent if each[0] is not link]
        for call in self._open.values():
            if call.link is link and call.reply is None:
                text = "the gateway of the request that called it has ended"
                call.finish(CallReply(call.number, "unavailable", text, retryable=True))


def _frame(
    call: OpenCall,
    version: str,
    outputs: Sequence[str],
    parameters: Mapping[str, Any],  # scalars
    deadline_ns: int,
) -> bytes:
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            text = f"parameter '{name!s:.80}' for model '{call.model}' is neither a number nor a string"
            raise CallError("bad_request", text, model=call.model)
    try:
        frame = pack_frame([call.record(version, outputs, parameters, deadline_ns)])
    except (OverflowError, TypeError, ValueError) as error:
        raise CallError("bad_request", f"the call of model '{call.model}' cannot be sent: {error}") from error
    if len(frame) > FRAME_LIMIT_BYTES:
        text = f"the call of model '{call.model}' has too many bytes of names and parameters"
        raise CallError("bad_request", text, model=call.model)
    return frame


def calls_of(engine: object) -> ModelCalls | None:
    """Of an engine whose models are code that may call others."""
    calls = getattr(engine, "calls", None)
    return calls if isinstance(calls, ModelCalls) else None
