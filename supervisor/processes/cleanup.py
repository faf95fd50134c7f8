"""What is left of lives that ended: control groups, scratch folders, socket files; cleared piece by piece.

A group can be removed only when the kernel has let go of its last process, and a model may have left a million files.
Neither may hold up the loop, so every turn does a bounded part.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Final

from mmsup.supervisor.linux.cgroup import Cgroup

INTERVAL_S: Final = 0.02
MAX_NAMES: Final = 200
"""Names removed in one turn: a few milliseconds on a slow disk."""


class Cleanup:
    """What is still to be removed."""

    def __init__(self) -> None:
        self._groups: list[Cgroup] = []
        self._removals: list[Iterator[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, group: Cgroup | None, scratch: str, socket: str) -> None:
        """Everything of one life, which is dead, or what is left of it; no path, and nothing is looked for."""
        with contextlib.suppress(OSError):
            os.unlink(socket)
        if group is not None:
            self._groups.append(group)
        self._removals.append(remove_tree(scratch))
        self._run()

    def close(self) -> None:
        """Leave the rest to the next start, which sweeps."""
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._groups = [group for group in self._groups if not _is_removed(group)]
        self._remove_some()
        if self._groups or self._removals:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._run)

    def _remove_some(self) -> None:
        for _ in range(MAX_NAMES):
            if not self._removals:
                return
            try:
                next(self._removals[0])
            except StopIteration:
                del self._removals[0]


def _is_removed(group: Cgroup) -> bool:
    try:
        return group.kill() and group.remove()
    except OSError:
        return False


def remove_tree(folder: str) -> Iterator[None]:
    """Remove a tree, one name a step; links are removed and never followed. What cannot be removed is left.

    A model may have made it deeper than Python's stack: so what is still to be done is a list, and one folder is open.
    """
    waiting = [(folder, False)]
    while waiting:
        here, is_emptied = waiting.pop()
        if is_emptied:
            with contextlib.suppress(OSError):
                os.rmdir(here)
            if waiting:
                yield
            continue
        waiting.append((here, True))
        with contextlib.suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, False))
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
                yield
