"""The asyncio loop of a model whose `execute` is `async def`: it runs in a thread of its own, as long as the model is
loaded, so that tasks which the model has started go on between requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """Started by the first coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine; its result, or whatever it raised: SystemExit too, which would end the loop otherwise."""
        done: Future[T] = Future()

        async def call() -> None:
            try:
                done.set_result(await coroutine)
            except BaseException as error:  # noqa: BLE001 - a model may raise anything; whoever waits gets it
                done.set_exception(error)

        loop = self._running_loop()
        loop.call_soon_threadsafe(self._begin, loop, call())
        return done

    def _begin(self, loop: asyncio.AbstractEventLoop, call: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="execute", daemon=True)
            self._thread.start()
        return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def stop(self) -> None:
        """End the loop; what still runs in it is cancelled."""
        loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
