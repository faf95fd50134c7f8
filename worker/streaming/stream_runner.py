"""Runs the streams of a worker: starts them, makes one part of each in turn, closes those that nobody reads any more.

A stream makes its next part while its window has room (ipc/messages/stream_window.py). An iterator is stepped, one part
in each turn of the worker's loop, beside the others; what awaits has a task in an event loop, which is turned there
too. Each step is a run of its own to whoever looks for hangs, and names its stream on the status page, so that a step
that ends the worker is not blamed on others. A stream that awaits and is silent for the model's hang limit ends with an
error; one that does not even end then is a hang of the worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, cast

from mmsup.ipc.memory.status_page import STREAM_PLACES, StatusPageWriter
from mmsup.ipc.messages.data import Cancel, GrantBuffer, StreamCredit
from mmsup.worker.calls.caller import CALLER
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import Response, as_streaming_engine, int_parameter
from mmsup.worker.execution.executor import Executor, failure_of_run
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.request_parameters import PARAMETERS
from mmsup.worker.execution.responses import close, is_awaited
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.streaming.awaited_streams import SLOW_PART_NS, AwaitedStreams
from mmsup.worker.streaming.open_stream import OpenStream, caller_of
from mmsup.worker.streaming.part_writer import PartWriter
from mmsup.worker.streaming.stream_table import StreamTable

_CANCELLED: Final = ModelFailure("cancelled", "the request was cancelled")


class StreamRunner:
    def __init__(
        self, executor: Executor, page: StatusPageWriter, writer: PartWriter, flush: Callable[[], None]
    ) -> None:
        """`flush` sends what was made."""
        engine = as_streaming_engine(executor.engine)
        assert engine is not None, "its engine answers once"
        self._engine = engine
        self._spec = executor.spec
        self._page = page
        self._writer = writer
        self._flush = flush
        self.table = StreamTable(page, int_parameter(executor.spec.parameters, "max_streams", STREAM_PLACES))
        self.awaited = AwaitedStreams(executor, page, writer, self._finish)

    # What the gateways send.

    def on_message(self, link: GatewayLink, message: object) -> bool:
        """Whether this is about an open stream, and was handled."""
        if not isinstance(message, StreamCredit | GrantBuffer | Cancel):
            return False
        stream = self.table.open.get((link, message.id))
        if stream is None:
            return isinstance(message, StreamCredit)  # of a stream that has ended meanwhile
        if isinstance(message, Cancel):
            self._end(stream, _CANCELLED)
            return True
        if isinstance(message, StreamCredit):
            stream.window.take(message.taken)
        elif stream.held is None:
            return False
        elif (failure := self._writer.grant(stream, message)) is not None:
            self._end(stream, failure)
        if stream.room is not None and stream.can_continue:
            stream.room.set()
            self.awaited.events.wake()
        return True

    def drop_link(self, link: GatewayLink) -> None:
        """The gateway is gone, and with it all that read its streams."""
        for stream in self.table.of_link(link):
            self._end(stream, _CANCELLED)

    # Turns.

    def has_steps(self) -> bool:
        """Whether `turn` has something to do at once."""
        streams = self.table.open.values()
        return self.awaited.events.is_due() or any(each.iterator and each.can_continue for each in streams)

    def start(self, request: WorkerRequest, inputs: Arrays, began_ns: int) -> None:
        """Open a stream, and take its first step."""
        now_ns, rows = time.monotonic_ns(), request.signature.rows
        times = RunTimes(began_ns - request.arrived_ns, now_ns - began_ns, 0, 0, 1, rows)
        stream = self.table.add(request, times)
        self._page.batch_started((request.message.id,), now_ns)
        CALLER.set(caller_of(request))
        PARAMETERS.set(request.signature.parameters)
        try:
            answer = self._engine.respond(inputs, self._writer.names(stream))
        except BaseException as error:  # noqa: BLE001 - a model may raise anything, asyncio's CancelledError too
            self._end(stream, failure_of_run(error, self._spec))
        else:
            if answer is None:
                self._end(stream, None)
            elif is_awaited(answer):
                self.awaited.start(stream, answer, inputs)
            elif isinstance(answer, Mapping):
                self._end(stream, self._writer.write(stream, answer, time.monotonic_ns() - now_ns))
            else:
                stream.iterator = cast("Iterator[Response]", answer)
                self._step(stream)
        self._page.batch_executed(1)

    def turn(self) -> bool:
        """Take one step of each stream that may; False if there was none."""
        stepped = False
        for stream in list(self.table.open.values()):
            if stream.iterator is not None and stream.can_continue:
                began_ns = time.monotonic_ns()
                self._step(stream)
                stepped = True
                if time.monotonic_ns() - began_ns > SLOW_PART_NS:
                    self._flush()  # before the steps of others, which are likely slow too
        if self.awaited.events.is_due():
            self.awaited.turn()
            stepped = True
        return stepped

    def end_silent(self, now_ns: int) -> int:
        """End the streams that are silent. Returns since when one does not end, 0 if there is none."""
        stuck_ns = 0
        for stream in list(self.table.open.values()):
            since_ns = stream.closing_since_ns
            if since_ns and now_ns - since_ns > int(self._spec.hang_limit_s * 1e9):
                stuck_ns = min(stuck_ns or since_ns, since_ns)
            elif not since_ns and self.awaited.is_silent(stream, now_ns):
                text = f"model '{self._spec.name}' gave no further response within its hang limit"
                self._end(stream, ModelFailure("deadline_exceeded", f"Request timeout expired: {text}"))
        return stuck_ns

    def close(self) -> None:
        self.awaited.close()

    # One stream.

    def _step(self, stream: OpenStream) -> None:
        began_ns = time.monotonic_ns()
        self._page.step(stream.request.message.id, began_ns)
        assert stream.iterator is not None, "a stream that awaits is not stepped"
        CALLER.set(caller_of(stream.request))
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
        self._page.stepped(time.monotonic_ns())

    def _end(self, stream: OpenStream, failure: ModelFailure | None) -> None:
        """Close it; its last reply follows once its model has let go of it. The first reason holds."""
        stream.failure = stream.failure or failure
        if stream.closing_since_ns:
            return
        stream.closing_since_ns = time.monotonic_ns()
        if stream.task is not None:
            stream.task.cancel()
            self.awaited.events.wake()
            return
        iterator, stream.iterator = stream.iterator, None
        if iterator is not None:
            self._page.step(stream.request.message.id, stream.closing_since_ns)
            call_model_code(partial(close, iterator), self._spec)
            self._page.stepped(time.monotonic_ns())
        self._finish(stream)

    def _finish(self, stream: OpenStream) -> None:
        if self.table.remove(stream) and not stream.is_answered:
            self._writer.end(stream)
