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

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.memory.status_page import make_page
from mmsup.ipc.messages.keeper_control import Child, Exited, Spawn
from mmsup.ipc.transport.control_channel import Seqpacket, close_all
from mmsup.supervisor.keeper.spawn import start

LOG_PIPE_BYTES: Final = 256 * 1024
"""What a child can print while the brain is away before its print waits."""


@dataclass(slots=True)
class Charge:
    """One child, from its fork until it is forgotten."""

    message: Child
    descriptors: tuple[int, ...]
    """In the order of the message."""
    procs_files: tuple[str, ...]
    doubt: int | None
    """Until its program runs: the pipe that tells (spawn.py)."""
    told: bool = False
    """A brain knows it by Child."""
    ended: Exited | None = None

    @property
    def pidfd(self) -> int:
        """Its process."""
        return self.descriptors[0]

    def settle(self) -> None:
        """The doubt is over."""
        if self.doubt is not None:
            os.close(self.doubt)
            self.doubt = None

    def release(self) -> None:
        """Close everything that was kept of it."""
        self.settle()
        close_all(self.descriptors)
        self.descriptors = ()


def take(spawn: Spawn, lifeline: int, shared: Mapping[str, int]) -> Charge:
    """Start a child with fresh descriptors of its own and the `shared` ones; OSError if that cannot be."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        faultpoint("keeper.child_channel")
        near, far = [end.detach() for end in Seqpacket.pair()]
        ours.callback(os.close, near)
        theirs.callback(os.close, far)
        faultpoint("keeper.child_page")
        page = make_page()
        ours.callback(os.close, page)
        faultpoint("keeper.child_pipes")
        crash, crash_end = _pipe(ours, theirs)
        log, log_end = _pipe(ours, theirs)
        with contextlib.suppress(OSError):  # an unprivileged user has a bound on pipes altogether
            fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
        inherited = {"lifeline": lifeline, "control": far, "page": page, "crash": crash_end, **shared}
        started = start(spawn, inherited, log_end)
        ours.pop_all()
    message = Child(spawn.token, started.pid, spawn.note)
    return Charge(message, (started.pidfd, near, page, crash, log), spawn.procs_files, started.doubt)


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reader never waits."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write
