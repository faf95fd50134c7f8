"""Calls `execute` of a decoupled model for one request, and gives what is sent for it as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.model_calls import PATH
from mmsup.worker.engines.triton_python.execute_thread import ExecuteThread
from mmsup.worker.engines.triton_python.sent_responses import SentResponses
from mmsup.worker.execution.batch_arrays import Arrays

NO_SENDER = "execute of a decoupled model returned without having asked for the response sender of its request"
NOT_NONE = "execute of a decoupled model returns None: its responses are sent by the response sender"


class DecoupledExecution:
    """`execute` calls the model with the one request. Nothing here holds that after it has returned: once the model has
    dropped its sender too, the stream ends."""

    def __init__(self, stream: SentResponses, execute: Callable[[], Any], calls: ModelCalls) -> None:
        self._stream = stream
        self._execute: Callable[[], Any] | None = execute
        self._calls = calls

    async def in_thread(self, thread: ExecuteThread) -> AsyncIterator[Arrays]:
        """`execute` runs in that thread. When nobody reads any more, it is waited for: a worker whose model does not
        come back is one that hangs."""
        loop, returned, context = asyncio.get_running_loop(), asyncio.Event(), contextvars.copy_context()

        def call() -> None:
            PATH.use(self._calls, loop)
            context.run(self._call)  # which says whose calls of other models they are
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker ends
                loop.call_soon_threadsafe(returned.set)

        thread.submit(call)
        try:
            async for each in self._stream.responses():
                yield each
        finally:
            self._stream.cancel()
            await returned.wait()

    async def in_loop(self) -> AsyncIterator[Arrays]:
        """`execute` is a coroutine of the event loop."""
        PATH.use(self._calls, asyncio.get_running_loop())
        task = asyncio.create_task(self._call_async())
        try:
            async for each in self._stream.responses():
                yield each
        finally:
            self._stream.cancel()
            task.cancel()
            await asyncio.wait((task,))

    def _call(self) -> None:
        execute, self._execute = self._execute, None
        if self._stream.is_cancelled or execute is None:
            return
        try:
            self._check(execute())
        except BaseException as error:  # noqa: BLE001 - a model may raise anything; the reader of the stream gets it
            self._stream.finish(error)

    async def _call_async(self) -> None:
        execute, self._execute = self._execute, None
        assert execute is not None, "it is called once"
        coroutine: Coroutine[Any, Any, Any] = execute()
        try:
            self._check(await coroutine)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            self._stream.finish(error)

    def _check(self, returned: Any) -> None:  # of the model
        if returned is not None:
            raise TritonModelException(NOT_NONE)
        if not self._stream.is_taken:
            raise TritonModelException(NO_SENDER)
