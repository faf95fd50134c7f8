"""The workers that answered, watched by pidfd: when the kernel says that one has ended, the history has it.

A pid is known from the answers themselves, so nobody is asked for it and nobody can be out of date.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, WorkerDeath


class WorkerWatch:
    """One descriptor for each life that has answered and lives. Needs the same machine."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._current: dict[str, int] = {}
        self._watched: dict[tuple[str, int], int] = {}
        self._ended_workers: set[tuple[str, int]] = set()
        """The last answer of a process may be read after its end, while it still waits to be reaped."""
        self._changed: dict[str, asyncio.Event] = {}

    def on_answer(self, model: str, outcome: RequestOutcome) -> None:
        """A right answer of the model."""
        key = (model, outcome.pid)
        if not outcome.pid or key in self._watched or key in self._ended_workers:
            return
        try:
            pidfd = os.pidfd_open(outcome.pid)
        except ProcessLookupError:
            return  # it ended after its answer
        self._watched[key] = pidfd
        self._current[model] = outcome.pid
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit, key)
        self._changed.setdefault(model, asyncio.Event()).set()

    def pid(self, model: str) -> int:
        """The process that answers for the model; 0 if none is known."""
        return self._current.get(model, 0)

    async def wait_replaced(self, model: str, pid: int, limit_s: float) -> None:
        """Returns when another process than this one answers for the model, or at the limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.pid(model) in (0, pid):
                    news = self._changed.setdefault(model, asyncio.Event())
                    news.clear()
                    await news.wait()

    def send_signal(self, model: str, number: signal.Signals) -> bool:
        """Signal that process, and no other that has its number now; whether there was one."""
        pidfd = self._watched.get((model, self.pid(model)))
        if pidfd is None:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True

    def close(self) -> None:
        """Watch nobody any more."""
        for key in list(self._watched):
            self._release(key)

    def _on_exit(self, key: tuple[str, int]) -> None:
        self._history.add(WorkerDeath(self._history.now(), *key))
        self._ended_workers.add(key)
        self._release(key)

    def _release(self, key: tuple[str, int]) -> None:
        pidfd = self._watched.pop(key)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        if self._current.get(key[0]) == key[1]:
            del self._current[key[0]]
