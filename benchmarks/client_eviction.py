"""Ideal LRU from outside: puts the model that was asked longest ago to sleep when more are loaded than are to be.

It is what an operator could do without a budget, and beside it stands what the server does by itself. Models that have
requests open are passed by.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

PARALLEL = 4
"""Calls of `sleep` at a time; each lasts until its worker has ended."""


class ClientEviction:
    """Is told of every request; decides in the caller's thread, acts in others."""

    def __init__(self, fit: int, sleep: Callable[[int], object]) -> None:
        """`sleep` puts a model to sleep."""
        self._fit = fit
        self._sleep = sleep
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._open = Counter[int]()
        self._threads = ThreadPoolExecutor(PARALLEL, thread_name_prefix="sleep")
        self.faults: list[str] = []

    def __enter__(self) -> ClientEviction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown()

    def begin(self, model: int) -> None:
        """A request is sent: its model will be loaded, if it is not."""
        self._open[model] += 1
        self._loaded[model] = None
        self._loaded.move_to_end(model)
        self._make_room()

    def end(self, model: int) -> None:
        """It is answered."""
        self._open[model] -= 1
        self._make_room()

    def _make_room(self) -> None:
        if len(self._loaded) <= self._fit:
            return
        victim = next((model for model in self._loaded if not self._open[model]), None)
        if victim is not None:
            del self._loaded[victim]
            self._threads.submit(self._put_to_sleep, victim)

    def _put_to_sleep(self, model: int) -> None:
        try:
            self._sleep(model)
        except Exception as error:  # noqa: BLE001 - a thread's; the run reports it
            self.faults.append(f"sleep of model {model}: {type(error).__name__} {error}")
