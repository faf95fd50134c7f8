"""Notification when the kernel's out-of-memory killer kills a process in a control group.

The kernel kills the largest process of the group, which may be a child of the worker; the worker would go on in an
undefined state. Therefore the controller is notified, checks the group's counter, and kills the whole group. If the
worker itself was killed, the notification arrives 7 to 18 ms before its exit is reported.

    v1   an eventfd, registered for the group's `memory.oom_control` in `cgroup.event_control`
    v2   a change of `memory.events`, which the kernel reports as POLLPRI; an epoll object makes that readable for the
         event loop (the file itself is always readable)
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from mmsup.supervisor.linux.cgroup import write_file


class OomEvents:
    """A descriptor that becomes readable when the out-of-memory killer has killed in the group."""

    def __init__(self, folder: Path) -> None:
        """OSError if the group cannot be watched; its counter is then read only after the worker's exit."""
        self._event = -1
        self._poller: select.epoll | None = None
        self._file = -1
        if (folder / "memory.oom_control").exists():
            self._register_eventfd(folder)
        else:
            self._watch_events_file(folder / "memory.events")

    def fileno(self) -> int:
        return self._poller.fileno() if self._poller is not None else self._event

    def clear(self) -> None:
        """Reset the descriptor until the next kill."""
        if self._poller is not None:
            with contextlib.suppress(OSError):  # the group was removed
                os.pread(self._file, 4096, 0)
            self._poller.poll(0)
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def close(self) -> None:
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
