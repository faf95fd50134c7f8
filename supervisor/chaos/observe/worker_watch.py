"""Watches the workers that have answered by pidfd, and records when each dies.

Process ids come from the answers of the fault model, so that they are never out of date.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from mmsup.supervisor.chaos.observe.history import History, RequestOutcome, WorkerDeath


class WorkerWatch:
    """One pidfd for each live worker that has answered. Needs the same machine."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._current: dict[str, int] = {}
        self._watched: dict[tuple[str, int], int] = {}
        self._ended_workers: set[tuple[str, int]] = set()
        """The last answer of a worker may be read after its death, while it waits to be reaped."""
        self._changed: dict[str, asyncio.Event] = {}

    def on_answer(self, model: str, outcome: RequestOutcome) -> None:
        """Called for every right answer of a model: starts to watch a new worker."""
        key = (model, outcome.pid)
        if not outcome.pid or key in self._watched or key in self._ended_workers:
            return
        try:
            pidfd = os.pidfd_open(outcome.pid)
        except ProcessLookupError:
            return  # it died after its answer
        self._watched[key] = pidfd
        self._current[model] = outcome.pid
        asyncio.get_running_loop().add_reader(pidfd, self._on_exit, key)
        self._changed.setdefault(model, asyncio.Event()).set()

    def pid(self, model: str) -> int:
        """The worker that answered last for the model; 0 if it is dead or none has answered."""
        return self._current.get(model, 0)

    async def wait_replaced(self, model: str, pid: int, limit_s: float) -> None:
        """Returns when another worker than `pid` has answered for the model, or after `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.pid(model) in (0, pid):
                    changed = self._changed.setdefault(model, asyncio.Event())
                    changed.clear()
                    await changed.wait()

    def send_signal(self, model: str, number: signal.Signals) -> bool:
        """Signal the model's worker by its pidfd, so that a reused pid cannot be hit; False if there is none."""
        pidfd = self._watched.get((model, self.pid(model)))
        if pidfd is None:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True

    def close(self) -> None:
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
