"""One process that the keeper started for the controller: its descriptors, and the events on them.

A ChildProcess owns pidfd, control channel, status page, crash pipe and log pipe until it is closed. A readable pidfd is
the only sign of death; the status comes with the keeper's ChildExited. The pidfd is polled when it matters and not
watched by the loop: a timer, or a read of the dead process's page, may come first in a loop iteration.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mmsup.ipc.memory.status_page import RUNNING, Activity, Progress, StatusPageReader
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.message_channel import MessageChannel

CRASH_BYTES: Final = 64 << 10
"""The stacks of some hundred threads."""
CRASH_DELAY_S: Final = 0.001
CRASH_LINE_LOOKS: Final = 50
"""Looks at the crash pipe, with the delay between two, until its first line is whole."""
READ_BYTES: Final = 64 << 10
FINAL_READS: Final = 64
"""A dead process leaves at most a pipe full of output; a grandchild may go on writing, and that is not read."""
DESCRIPTOR_COUNT: Final = 5
NO_DESCRIPTORS: Final = (
    "the controller has no room for the descriptors of another worker: raise `ulimit -n` or LimitNOFILE="
)
"""Why a child whose descriptors did not arrive is killed."""


class ChildListener(Protocol):
    def on_message(self, data: bytes, descriptors: list[int]) -> None:
        """A message on its control channel; the listener owns the descriptors."""

    def on_closed(self) -> None:
        """The control channel was closed, or its reader is too far behind."""

    def on_crash_output(self, text: str) -> None:
        """The first output on the crash pipe."""

    def on_output(self, data: bytes) -> None:
        """Standard output or error."""


@dataclass(slots=True)
class CrashOutput:
    text: str = ""
    read_s: float = 0.0
    """When something was last read; 0: never."""


class CrashPipe:
    """The pipe to which faulthandler of a process writes."""

    def __init__(self, fd: int, on_output: Callable[[], None]) -> None:
        """`on_output` is called once, when the first line is there."""
        self.output = CrashOutput()
        self._fd = fd
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self.read)

    @property
    def text(self) -> str:
        return self.output.text

    @property
    def read_s(self) -> float:
        return self.output.read_s

    def read(self) -> None:
        data = _read(self._fd)
        if data is None:
            return
        if not data or len(self.text) > CRASH_BYTES:
            self._loop.remove_reader(self._fd)
            return
        self.output.read_s = time.monotonic()
        is_first = not self.text
        self.output.text += data.decode("utf-8", "backslashreplace")
        if is_first:
            self._await_line(CRASH_LINE_LOOKS)

    def _await_line(self, looks: int) -> None:
        """faulthandler writes word by word: its first line is there at once, unless others have the processors."""
        if looks == CRASH_LINE_LOOKS or (looks and "\n" not in self.text.lstrip()):
            self._loop.call_later(CRASH_DELAY_S, self._await_line, looks - 1)
        else:
            self._on_output()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._on_output = lambda: None  # no reference cycle may keep the mapped status page, and its descriptor, alive


class ChildProcess:
    def __init__(self, token: str, pid: int, descriptors: list[int], listener: ChildListener) -> None:
        assert len(descriptors) == DESCRIPTOR_COUNT, f"{token} came with {len(descriptors)} descriptors"
        self.pid = pid
        self.pidfd, control, self.page_fd, crash, self._log = descriptors
        self._is_dead = False
        self._death_poll = select.poll()
        self._death_poll.register(self.pidfd, select.POLLIN)
        self._listener = listener
        self._page = StatusPageReader(self.page_fd)
        self._loop = asyncio.get_running_loop()
        self.channel = MessageChannel(ControlChannel.from_fd(control), listener.on_message, listener.on_closed)
        self.crash = CrashPipe(crash, self._report_crash)
        os.set_blocking(self._log, False)
        self._loop.add_reader(self._log, self._read_log)

    @property
    def is_dead(self) -> bool:
        """Whether the process has exited, asked of the kernel now."""
        self._is_dead = self._is_dead or bool(self._death_poll.poll(0))
        return self._is_dead

    def progress(self) -> Progress:
        return self._page.read()

    @property
    def has_served(self) -> bool:
        """Whether it is ready by its status page, be that received as a message or not."""
        return self.progress().activity in RUNNING | {Activity.IDLE}

    def drain_and_close(self) -> None:
        """It was reaped: read what it left, then close everything."""
        self._is_dead = True
        self.channel.drain()
        self.crash.read()
        for _ in range(FINAL_READS):
            if not self._read_log():
                break
        self.close()

    def close(self) -> None:
        self._is_dead = True  # to us: the number of the pidfd may soon name another descriptor
        self.channel.close()
        self.crash.close()
        self._loop.remove_reader(self._log)
        for fd in (self.pidfd, self._log, self.page_fd):
            os.close(fd)

    def _report_crash(self) -> None:
        if not self.is_dead:
            self._listener.on_crash_output(self.crash.text)

    def _read_log(self) -> bool:
        data = _read(self._log)
        if data == b"":
            self._loop.remove_reader(self._log)
        if data:
            self._listener.on_output(data)
        return bool(data)


def _read(fd: int) -> bytes | None:
    """What is in a pipe; b"" at its end, None if there is nothing now."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
