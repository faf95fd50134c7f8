"""The responses of a decoupled request on their way from the model's threads to the worker's event loop.

A sender waits while its reader is behind (READY_RESPONSES, READY_BYTES). In the event loop itself it cannot wait: there
it is refused at LOOP_FACTOR times that. When nobody reads any more, what is sent is dropped, and the model is told by
`is_cancelled`; it sends its last response as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.execution.batch_arrays import Arrays, size_bytes
from mmsup.worker.execution.model_errors import ModelFailure, RequestRefused

READY_RESPONSES: Final = 64
READY_BYTES: Final = 16 << 20
"""Responses that wait to be read, at most; a single one may be of any size."""
LOOP_FACTOR: Final = 16

Answer = Arrays | ModelFailure


class SentResponses:
    def __init__(self) -> None:
        self._ready: deque[Answer] = deque()
        self._ready_bytes = 0
        self._room = threading.Condition()
        """Guards everything here."""
        self.is_taken = False
        """The model has the sender of it."""
        self._is_final = False
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._wake: Callable[[], None] | None = None
        """Of the loop that reads; None before it does."""
        self._reader = 0
        """Its thread."""

    # By the model's threads.

    def put(self, answer: Answer) -> None:
        size = 0 if isinstance(answer, ModelFailure) else size_bytes(answer)
        with self._room:
            if threading.get_ident() == self._reader:
                if self._is_behind(LOOP_FACTOR):
                    raise TritonModelException("more responses wait than may: await something between two of them")
            else:
                self._room.wait_for(lambda: self._is_cancelled or not self._is_behind(1))
            if self._is_cancelled or self._is_final:
                return
            self._ready.append(answer)
            self._ready_bytes += size
            self._notify()

    def finish(self, error: BaseException | None = None) -> None:
        """No further response follows; `error`: it ends by that. The first end holds."""
        with self._room:
            if not self._is_final:
                self._is_final, self._error = True, error
                self._notify()

    def cancel(self) -> None:
        """Nobody reads any more."""
        with self._room:
            self._is_cancelled = True
            self._ready.clear()
            self._ready_bytes = 0
            self._room.notify_all()

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    def _is_behind(self, factor: int) -> bool:
        return len(self._ready) >= READY_RESPONSES * factor or self._ready_bytes >= READY_BYTES * factor

    def _notify(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the worker ends
                self._wake()

    # By the event loop.

    async def responses(self) -> AsyncIterator[Arrays]:
        """Each response when it comes; RequestRefused for one that is an error, and whatever ended it otherwise."""
        loop, has_come = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(has_come.set)

        with self._room:
            self._reader = threading.get_ident()
            self._wake = wake
        while True:
            answer = self._take()
            if isinstance(answer, ModelFailure):
                raise RequestRefused(answer)
            if answer is not None:
                yield answer
            elif self._is_final and not self._ready:
                if self._error is not None:
                    raise self._error
                return
            else:
                await has_come.wait()
                has_come.clear()

    def _take(self) -> Answer | None:
        with self._room:
            if not self._ready:
                return None
            answer = self._ready.popleft()
            self._ready_bytes -= 0 if isinstance(answer, ModelFailure) else size_bytes(answer)
            self._room.notify_all()
            return answer
