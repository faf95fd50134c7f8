"""One life: a process that the keeper started for us, its descriptors, and what is heard of it.

Who owns what: the Life owns pidfd, channel, page, crash pipe and log pipe from the moment of its making until `end`.
A pidfd that is readable is the one sign of death; its status comes with the keeper's Exited. It is asked when it
matters, never heard of: the loop may come to a dead process's page, or to a timer, before it comes to its pidfd.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from typing import Final, Protocol

from mmsup.ipc.memory.status_page import Activity, Progress, StatusPageReader
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.processes.message_channel import MessageChannel

CRASH_BYTES: Final = 64 << 10
"""The stacks of some hundred threads."""
CRASH_DELAY_S: Final = 0.001
READ_BYTES: Final = 64 << 10
FINAL_READS: Final = 64
"""What the dead left in its pipe is bounded by the pipe; a grandchild that goes on writing is not listened to."""
DESCRIPTOR_COUNT: Final = 5


class ChildListener(Protocol):
    """Who listens to a life."""

    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        """A message on its control channel; the descriptors are the listener's."""

    def on_closed(self) -> None:
        """It closed its control channel, or left it full."""

    def on_crash_output(self, text: str) -> None:
        """The crash pipe spoke for the first time."""

    def on_output(self, data: bytes) -> None:
        """Something of its standard output or error."""


class ChildProcess:
    """One process."""

    def __init__(self, token: str, pid: int, descriptors: list[int], listener: ChildListener) -> None:
        assert len(descriptors) == DESCRIPTOR_COUNT, f"{token} came with {len(descriptors)} descriptors"
        self.token = token
        self.pid = pid
        self.crash_text = ""
        self.crash_read_s = 0.0
        """When the crash pipe last spoke; 0: it never did."""
        self.pidfd, control, self.page_fd, self._crash, self._log = descriptors
        self._dead = False
        self._death_poll = select.poll()
        self._death_poll.register(self.pidfd, select.POLLIN)
        self._listener = listener
        self._page = StatusPageReader(self.page_fd)
        self._loop = asyncio.get_running_loop()
        self.channel = MessageChannel(ControlChannel.from_fd(control), listener.on_message, listener.on_closed)
        for fd in (self._crash, self._log):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._crash, self._read_crash)
        self._loop.add_reader(self._log, self._read_log)

    @property
    def is_dead(self) -> bool:
        """The kernel says so, now; what its page says is from before."""
        self._dead = self._dead or bool(self._death_poll.poll(0))
        return self._dead

    def progress(self) -> Progress:
        """Its status page now."""
        return self._page.read()

    @property
    def has_served(self) -> bool:
        """By its page, which says so whether or not anybody has heard it: it waits for work, or is at it."""
        return self.progress().activity in (Activity.IDLE, Activity.BUSY)

    def drain_and_close(self) -> None:
        """It is reaped: hear its last words, let go of everything."""
        self._dead = True
        self.channel.drain()
        self._read_crash()
        for _ in range(FINAL_READS):
            if not self._read_log():
                break
        self.close()

    def close(self) -> None:
        """Let go of everything, unheard."""
        self._dead = True  # to us: its pidfd may soon be another descriptor's number
        self.channel.close()
        for fd in (self._crash, self._log):
            self._loop.remove_reader(fd)
        for fd in (self.pidfd, self._crash, self._log, self.page_fd):
            os.close(fd)

    def _read_crash(self) -> None:
        data = _read(self._crash)
        if data is None:
            return
        if not data or len(self.crash_text) > CRASH_BYTES:
            self._loop.remove_reader(self._crash)
            return
        self.crash_read_s = time.monotonic()
        first = not self.crash_text
        self.crash_text += data.decode("utf-8", "backslashreplace")
        if first:
            # faulthandler writes word by word: the rest of its first line comes at once.
            self._loop.call_later(CRASH_DELAY_S, self._report_crash)

    def _report_crash(self) -> None:
        if not self.is_dead:
            self._listener.on_crash_output(self.crash_text)

    def _read_log(self) -> bool:
        data = _read(self._log)
        if data == b"":
            self._loop.remove_reader(self._log)
        if data:
            self._listener.on_output(data)
        return bool(data)


def _read(fd: int) -> bytes | None:
    """What waits in a pipe; empty at its end, None if nothing waits."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
