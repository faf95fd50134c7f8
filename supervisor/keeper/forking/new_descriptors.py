"""The descriptors of a child that is about to be started, by exec or by a fork of a zygote."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.ipc.transport.control_channel import ControlChannel

LOG_PIPE_BYTES: Final = 256 * 1024
"""How much a child can print while no controller reads before its write blocks."""


@dataclass(slots=True)
class NewDescriptors:
    kept: tuple[int, ...]
    """The keeper's: control, page, crash, log, and of a zygote its fork channel."""
    inherited: dict[str, int]
    """The child's, by name."""
    output: int
    is_kept: bool = False
    """`kept` belongs to whoever has started the child."""


@contextlib.contextmanager
def new_descriptors(spawn: Spawn, lifeline: int, shared: Mapping[str, int]) -> Iterator[NewDescriptors]:
    """Those of a new child of its own, and the `shared` ones; OSError if that fails.

    At the end of the block the child's ends are closed, and so are the keeper's if it was not started."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        failpoint("keeper.child_channel")
        near, far = _channel(ours, theirs)
        failpoint("keeper.child_page")
        page = make_status_page()
        ours.callback(os.close, page)
        failpoint("keeper.child_pipes")
        crash, crash_end = _pipe(ours, theirs)
        log, log_end = _pipe(ours, theirs)
        with contextlib.suppress(OSError):  # the kernel limits the pipe memory of an unprivileged user
            fcntl.fcntl(log, fcntl.F_SETPIPE_SZ, LOG_PIPE_BYTES)
        inherited = {"lifeline": lifeline, "control": far, "page": page, "crash": crash_end, **shared}
        kept = [near, page, crash, log]
        if spawn.is_zygote:
            fork, inherited["fork"] = _channel(ours, theirs)
            kept.append(fork)
        made = NewDescriptors(tuple(kept), inherited, log_end)
        yield made
        if made.is_kept:
            ours.pop_all()


def _channel(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    near, far = [end.detach() for end in ControlChannel.pair()]
    ours.callback(os.close, near)
    theirs.callback(os.close, far)
    return near, far


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe with a non-blocking read end, which is ours."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write
