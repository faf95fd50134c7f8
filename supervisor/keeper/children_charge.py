"""One child as the keeper keeps it: its process, the descriptors that outlive every brain, and how it ended.

    pidfd      its process
    control    the brain's end of its control channel
    page       its status page
    crash      where faulthandler's words arrive
    log        where its standard output and error arrive

A brain gets duplicates of all five with Child; the keeper's own are closed by `release`, after Forget.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited, Spawn
from mmsup.ipc.transport.control_channel import ControlChannel, close_fds
from mmsup.supervisor.keeper.spawn import start

LOG_PIPE_BYTES: Final = 256 * 1024
"""What a child can print while the brain is away before its print waits."""


@dataclass(slots=True)
class ManagedChild:
    """One child, from its fork until it is forgotten."""

    message: ChildDescriptors
    descriptors: tuple[int, ...]
    """In the order of the message."""
    procs_files: tuple[str, ...]
    exec_status: int | None
    """Until its program runs: the pipe that tells (spawn.py)."""
    is_announced: bool = False
    """A brain knows it by Child."""
    exited: ChildExited | None = None

    @property
    def pidfd(self) -> int:
        """Its process."""
        return self.descriptors[0]

    def close_exec_status(self) -> None:
        """The doubt is over."""
        if self.exec_status is not None:
            os.close(self.exec_status)
            self.exec_status = None

    def close(self) -> None:
        """Close everything that was kept of it."""
        self.close_exec_status()
        close_fds(self.descriptors)
        self.descriptors = ()


def start_child(spawn: Spawn, lifeline: int, shared: Mapping[str, int]) -> ManagedChild:
    """Start a child with fresh descriptors of its own and the `shared` ones; OSError if that cannot be."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        failpoint("keeper.child_channel")
        near, far = [end.detach() for end in ControlChannel.pair()]
        ours.callback(os.close, near)
        theirs.callback(os.close, far)
        failpoint("keeper.child_page")
        page = make_status_page()
        ours.callback(os.close, page)
        failpoint("keeper.child_pipes")
        crash, crash_end = _pipe(ours, theirs)
        log, log_end = _pipe(ours, theirs)
        with contextlib.suppress(OSError):  # an unprivileged user has a bound on pipes altogether
            fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
        inherited = {"lifeline": lifeline, "control": far, "page": page, "crash": crash_end, **shared}
        started = start(spawn, inherited, log_end)
        ours.pop_all()
    message = ChildDescriptors(spawn.token, started.pid, spawn.note)
    return ManagedChild(message, (started.pidfd, near, page, crash, log), spawn.procs_files, started.exec_status)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reader never waits."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write
