"""Streams that await: each is a task in an event loop, for as long as it is open.

One task reads the whole of an async generator, so that what the generator enters (a timeout, a group of tasks) is left
in the same task. A stream that gives nothing for the model's hang limit, though it could, is silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

from mmsup.ipc.memory.status_page import STEPPING_ALL, StatusPageWriter
from mmsup.worker.calls.caller import CALLER
from mmsup.worker.calls.model_calls import calls_of
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import Response
from mmsup.worker.execution.executor import Executor, failure_of_run
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure
from mmsup.worker.streaming.event_loop import TurnedEventLoop
from mmsup.worker.streaming.open_stream import OpenStream, caller_of
from mmsup.worker.streaming.part_writer import PartWriter

SLOW_PART_NS: Final = 1_000_000
"""A part that took longer goes out at once; quicker ones go out together at the end of a turn."""


class AwaitedStreams:
    def __init__(
        self,
        executor: Executor,
        page: StatusPageWriter,
        writer: PartWriter,
        on_end: Callable[[OpenStream], None],
    ) -> None:
        """`on_end` is called when a task is over."""
        self.events = TurnedEventLoop()
        self._spec = executor.spec
        self._is_decoupled = executor.metadata.decoupled
        self._page = page
        self._writer = writer
        self._on_end = on_end
        self._calls = calls_of(executor.engine)
        self._lost: DeviceLost | None = None
        """What a task ended with that ends the process: asyncio would only log it."""

    def start(self, stream: OpenStream, answer: Any, inputs: Arrays) -> None:  # of the model
        stream.room = asyncio.Event()
        stream.task = self.events.create_task(self._run(stream, answer, inputs))
        stream.task.add_done_callback(partial(self._on_done, stream))
        self.turn()

    def turn(self) -> None:
        """Run until all tasks wait. Whatever ends the process meanwhile is blamed on all of them."""
        self._page.step(STEPPING_ALL, time.monotonic_ns())
        self.events.turn()
        self._page.stepped(time.monotonic_ns())
        if self._lost is not None:
            raise self._lost

    def is_silent(self, stream: OpenStream, now_ns: int) -> bool:
        """Only after its first response: until then the request has its deadline. A model that it has called is judged
        in its place."""
        if stream.silent_since_ns and self._calls is not None and self._calls.is_waiting(stream.request.message.id):
            stream.silent_since_ns = now_ns
        silent_ns = now_ns - stream.silent_since_ns if stream.silent_since_ns and stream.window.sent else 0
        return silent_ns > int(self._spec.hang_limit_s * 1e9)

    async def _run(self, stream: OpenStream, answer: Any, inputs: Arrays) -> None:  # of the model
        CALLER.set(caller_of(stream.request, asyncio.get_running_loop()))
        if not hasattr(answer, "__anext__"):
            await self._run_once(stream, cast("Awaitable[Response | None]", answer), inputs)
            return
        responses = cast("AsyncIterator[Response]", answer)
        try:
            stream.silent_since_ns = time.monotonic_ns()
            async for made in responses:
                took_ns = time.monotonic_ns() - stream.silent_since_ns
                stream.failure = stream.failure or self._writer.write(stream, made, took_ns)
                if stream.failure is not None:
                    break
                if stream.window.sent == 1 or took_ns > SLOW_PART_NS:
                    await self.events.next_turn()  # it goes out, although the model may compute without awaiting
                await self._wait_for_room(stream)
        finally:
            stream.silent_since_ns = 0
            close = getattr(responses, "aclose", None)
            if close is not None:
                await close()

    async def _run_once(self, stream: OpenStream, answer: Awaitable[Response | None], inputs: Arrays) -> None:
        began_ns, failure = time.monotonic_ns(), None
        made = await answer
        took_ns = time.monotonic_ns() - began_ns
        if made is not None and self._is_decoupled:
            failure = self._writer.write(stream, made, took_ns)
        elif made is not None:
            failure = self._writer.write_only(stream, made, inputs, took_ns)
        elif not self._is_decoupled:
            failure = ModelFailure("inference_failed", f"model '{self._spec.name}' answered nothing: is it decoupled?")
        stream.failure = stream.failure or failure

    async def _wait_for_room(self, stream: OpenStream) -> None:
        assert stream.room is not None, "a stream that is stepped does not await"
        while not stream.can_continue:
            stream.silent_since_ns = 0
            stream.room.clear()
            await stream.room.wait()
        stream.silent_since_ns = time.monotonic_ns()

    def _on_done(self, stream: OpenStream, task: asyncio.Task[None]) -> None:
        stream.task = None
        error = asyncio.CancelledError("it was cancelled from within") if task.cancelled() else task.exception()
        try:
            if error is not None and stream.failure is None:
                stream.failure = failure_of_run(error, self._spec)
        except DeviceLost as lost:
            self._lost = lost
            return
        self._on_end(stream)

    def close(self) -> None:
        self.events.close()
