"""The event loop in which the asynchronous code of a model runs: one run at a time, in the worker's one thread."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio  # takes 30 ms of a start

T = TypeVar("T")


class ModelEventLoop:
    """Made at the first run that needs it, and kept: what the model binds to a loop stays good."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine. Tasks that it leaves behind are cancelled."""
        import asyncio  # noqa: PLC0415 - as above; code that makes coroutines has imported it mostly

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        try:
            return self._loop.run_until_complete(coroutine)
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None
