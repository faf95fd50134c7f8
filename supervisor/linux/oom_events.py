"""Hears the kernel end something in a control group for memory, at once, whoever of the group it was.

The kernel takes the largest process, not the culprit: a worker whose child was taken would go on half dead. So the
brain hears of it here, sees by the counter that it is true, and ends the whole group. For a worker that was taken
itself this comes 7 to 18 ms before its exit does.

    v1   an eventfd, registered with the group's `memory.oom_control` through `cgroup.event_control`
    v2   a change of `memory.events`, which the kernel reports as POLLPRI; an epoll of its own makes that readable
         (the file itself always is, so it cannot be given to a loop)
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from mmsup.supervisor.linux.cgroup import write_file


class OomEvents:
    """A descriptor that becomes readable when the kernel's out-of-memory killer was in the group."""

    def __init__(self, folder: Path) -> None:
        """OSError where the group cannot be watched; its counter is then read at the end of the life only."""
        self._event = -1
        self._poller: select.epoll | None = None
        self._file = -1
        if (folder / "memory.oom_control").exists():
            self._register_eventfd(folder)
        else:
            self._watch_events_file(folder / "memory.events")

    def fileno(self) -> int:
        """For the loop."""
        return self._poller.fileno() if self._poller is not None else self._event

    def clear(self) -> None:
        """Heard: the descriptor is quiet until the next time."""
        if self._poller is not None:
            with contextlib.suppress(OSError):  # its group is gone: there is nothing left to read
                os.pread(self._file, 4096, 0)
            self._poller.poll(0)
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def close(self) -> None:
        """Watch no more."""
        if self._poller is not None:
            self._poller.close()
        for fd in (self._event, self._file):
            if fd >= 0:
                os.close(fd)
        self._event = self._file = -1

    def _register_eventfd(self, folder: Path) -> None:
        control = os.open(folder / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if not write_file(folder / "cgroup.event_control", f"{self._event} {control}"):
                raise OSError(f"{folder.name} cannot be watched for memory")
        except OSError:
            self.close()
            raise
        finally:
            os.close(control)

    def _watch_events_file(self, events: Path) -> None:
        self._file = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._poller = select.epoll()
            self._poller.register(self._file, select.EPOLLPRI)
            os.pread(self._file, 4096, 0)
        except OSError:
            self.close()
            raise
