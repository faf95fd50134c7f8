"""Runs the streams of a worker: starts them, makes one part of each in turn, closes those that nobody reads any more.

A stream makes its next part while its window has room (ipc/stream_window.py). An iterator is stepped, one part in each
turn of the worker's loop, beside the others; what awaits has a task in an event loop, which is turned there too. Each
step is a run of its own to whoever looks for hangs, and names its stream on the status page, so that a step that ends
the worker is not blamed on others. A stream that awaits and gives nothing for the model's hang limit, though it could,
ends with an error; one that does not even end then is a hang of the worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from typing import Any, Final, cast

from mmsup.ipc.memory.status_page import STEPPING_ALL, STREAM_PLACES, Activity, StatusPageWriter
from mmsup.ipc.messages.data import Cancel, GrantBuffer, StreamCredit
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import Response, as_streaming_engine, int_parameter
from mmsup.worker.execution.executor import Executor, failure_of_run
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.responses import close, is_awaited
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.streaming.event_loop import TurnedEventLoop
from mmsup.worker.streaming.open_stream import OpenStream
from mmsup.worker.streaming.part_writer import PartWriter

log = logging.getLogger("mmsup.worker")
_CANCELLED: Final = ModelFailure("cancelled", "the request was cancelled")


class StreamRunner:
    def __init__(self, executor: Executor, page: StatusPageWriter, writer: PartWriter) -> None:
        engine = as_streaming_engine(executor.engine)
        assert engine is not None, "its engine answers once"
        self._engine = engine
        self._spec = executor.spec
        self._is_decoupled = executor.metadata.decoupled
        self._page = page
        self._writer = writer
        self.events = TurnedEventLoop()
        limit = min(int_parameter(executor.spec.parameters, "max_streams", STREAM_PLACES), STREAM_PLACES)
        self._places = list(range(limit))
        """Free ones, in the table of the status page."""
        self.open: dict[tuple[GatewayLink, int], OpenStream] = {}

    # What the gateways send.

    def on_message(self, link: GatewayLink, message: object) -> bool:
        """Whether this is about an open stream, and was handled."""
        if not isinstance(message, StreamCredit | GrantBuffer | Cancel):
            return False
        stream = self.open.get((link, message.id))
        if stream is None:
            return isinstance(message, StreamCredit)  # of a stream that has ended meanwhile
        if isinstance(message, Cancel):
            self._end(stream, _CANCELLED)
        elif isinstance(message, StreamCredit):
            stream.on_credit(message)
            self.events.wake()
        else:
            if stream.held is None:
                return False  # of an only response, which waits elsewhere
            self._writer.grant(stream, message)
            stream.wake()
            self.events.wake()
        return True

    def drop_link(self, link: GatewayLink) -> None:
        """The gateway is gone, and with it all that read its streams."""
        for stream in [each for each in self.open.values() if each.request.link is link]:
            self._end(stream, _CANCELLED)

    # Turns.

    @property
    def is_full(self) -> bool:
        return not self._places

    def may_start(self, request: WorkerRequest) -> bool:
        """Whether it can be opened now: a request that runs alone waits for all others, and they for it."""
        if request.signature.runs_alone:
            return not self.open
        return not self.is_full and not any(each.request.signature.runs_alone for each in self.open.values())

    def has_steps(self) -> bool:
        """Whether `turn` has something to do at once."""
        return self.events.is_due() or any(each.iterator and each.can_continue for each in self.open.values())

    def start(self, request: WorkerRequest, inputs: Arrays, began_ns: int) -> None:
        """Open a stream, and take its first step."""
        now_ns, number = time.monotonic_ns(), request.message.id
        times = RunTimes(began_ns - request.arrived_ns, now_ns - began_ns, 0, 0, 1, request.signature.rows)
        stream = self.open[request.key] = OpenStream(request, self._places.pop(), times)
        self._page.set_stream(stream.place, number)
        self._page.batch_started((number,), now_ns)
        try:
            answer = self._engine.respond(inputs, self._writer.names(stream))
        except BaseException as error:  # noqa: BLE001 - a model may raise anything, asyncio's CancelledError too
            self._end(stream, failure_of_run(error, self._spec))
        else:
            if is_awaited(answer):
                stream.room = asyncio.Event()
                stream.task = self.events.create_task(self._await(stream, answer, inputs))
                stream.task.add_done_callback(partial(self._on_awaited, stream))
                self.turn_events()
            elif answer is None or isinstance(answer, dict):
                self._on_answer(stream, answer, now_ns)
            else:
                stream.iterator = cast("Iterator[Response]", answer)
                self._step(stream)
        self._page.batch_executed(1)

    def turn(self) -> bool:
        """Take one step of each stream that may; False if there was none."""
        stepped = False
        for stream in list(self.open.values()):
            if stream.iterator is not None and stream.can_continue:
                self._step(stream)
                stepped = True
        if self.events.is_due():
            self.turn_events()
            stepped = True
        return stepped

    def end_silent(self, now_ns: int) -> int:
        """End the streams that await and are silent. Returns since when one does not end, 0 if there is none."""
        limit_ns, stuck_ns = int(self._spec.hang_limit_s * 1e9), 0
        for stream in list(self.open.values()):
            since_ns = stream.closing_since_ns
            if since_ns and now_ns - since_ns > limit_ns:
                stuck_ns = min(stuck_ns or since_ns, since_ns)
            elif stream.silent_since_ns and stream.window.sent and now_ns - stream.silent_since_ns > limit_ns:
                text = f"Request timeout expired: model '{self._spec.name}' gave no further response within its hang limit"
                self._end(stream, ModelFailure("deadline_exceeded", text))
        return stuck_ns

    # One stream.

    def _step(self, stream: OpenStream) -> None:
        began_ns = time.monotonic_ns()
        self._page.step(stream.request.message.id, began_ns)
        assert stream.iterator is not None, "a stream that awaits is not stepped"
        try:
            made = next(stream.iterator)
        except StopIteration:
            stream.iterator = None
            self._end(stream, None)
        except BaseException as error:  # noqa: BLE001 - as in `start`
            stream.iterator = None
            self._end(stream, failure_of_run(error, self._spec))
        else:
            failure = self._writer.write(stream, made, time.monotonic_ns() - began_ns)
            if failure is not None:
                self._end(stream, failure)
        self._page.stepped()

    def _on_answer(self, stream: OpenStream, answer: Response | None, began_ns: int) -> None:
        """It has answered by one response, or by none."""
        failure = None
        if answer is not None:
            failure = self._writer.write(stream, answer, time.monotonic_ns() - began_ns)
        self._end(stream, failure)

    async def _await(self, stream: OpenStream, answer: Any, inputs: Arrays) -> None:  # of the model
        if not hasattr(answer, "__anext__"):
            await self._await_one(stream, cast("Awaitable[Response | None]", answer), inputs)
            return
        responses, began_ns = cast("AsyncIterator[Response]", answer), time.monotonic_ns()
        try:
            stream.silent_since_ns = began_ns
            async for made in responses:
                now_ns = time.monotonic_ns()
                stream.failure = stream.failure or self._writer.write(stream, made, now_ns - stream.silent_since_ns)
                if stream.failure is not None:
                    break
                await self._await_room(stream)
        finally:
            stream.silent_since_ns = 0
            found = getattr(responses, "aclose", None)
            if found is not None:
                await found()

    async def _await_one(self, stream: OpenStream, answer: Awaitable[Response | None], inputs: Arrays) -> None:
        began_ns = time.monotonic_ns()
        made = await answer
        took_ns = time.monotonic_ns() - began_ns
        if made is not None and not self._is_decoupled:
            failure = self._writer.write_only(stream, made, inputs, took_ns)
            if failure is None:
                self._forget(stream)
        elif made is not None:
            failure = self._writer.write(stream, made, took_ns)
        else:
            text = f"model '{self._spec.name}' answered nothing, and is not decoupled"
            failure = None if self._is_decoupled else ModelFailure("inference_failed", text)
        stream.failure = stream.failure or failure

    async def _await_room(self, stream: OpenStream) -> None:
        assert stream.room is not None, "a stream that is stepped does not await"
        while not stream.can_continue:
            stream.silent_since_ns = 0
            stream.room.clear()
            await stream.room.wait()
        stream.silent_since_ns = time.monotonic_ns()

    def _on_awaited(self, stream: OpenStream, task: asyncio.Task[None]) -> None:
        """Its task is over."""
        stream.task = None
        if task.cancelled():
            error: BaseException | None = asyncio.CancelledError("it was cancelled from within")
        else:
            error = task.exception()
        if error is not None and stream.failure is None:
            stream.failure = failure_of_run(error, self._spec)
        self._finish(stream)

    def turn_events(self) -> None:
        self._page.step(STEPPING_ALL, time.monotonic_ns())
        self.events.turn()
        self._page.stepped()

    # Ends.

    def _end(self, stream: OpenStream, failure: ModelFailure | None) -> None:
        """Close it; its last reply follows once its model has let go of it. The first reason holds."""
        stream.failure = stream.failure or failure
        if stream.closing_since_ns:
            return
        stream.closing_since_ns = time.monotonic_ns()
        if stream.task is not None:
            stream.task.cancel()
            self.events.wake()
            return
        iterator, stream.iterator = stream.iterator, None
        if iterator is not None:
            self._page.step(stream.request.message.id, stream.closing_since_ns)
            call_model_code(partial(close, iterator), self._spec)
            self._page.stepped()
        self._finish(stream)

    def _finish(self, stream: OpenStream) -> None:
        if self.open.get(stream.request.key) is stream:
            self._forget(stream)
            self._writer.end(stream)

    def _forget(self, stream: OpenStream) -> None:
        del self.open[stream.request.key]
        self._places.append(stream.place)
        self._page.set_stream(stream.place, 0)

    def close(self) -> None:
        self.events.close()

    def mark_stuck(self, since_ns: int) -> None:
        """Say on the status page that one has not ended since then, as if it were a run."""
        self._page.set_activity(Activity.BUSY, since_ns)
