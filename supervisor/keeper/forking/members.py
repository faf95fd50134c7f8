"""The descriptors of a model that is to run in a process that there is: that of its co-location group."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import make_status_page
from mmsup.ipc.transport.control_channel import ControlChannel

MEMBER_DESCRIPTORS: Final = 4
"""Pidfd, control, page, and the host's end of the control channel. Every other child has more."""


def member_descriptors(host_pidfd: int) -> tuple[int, ...]:
    """Those of a new member; OSError if that fails."""
    with contextlib.ExitStack() as made:
        failpoint("keeper.member_channel")
        near, far = [end.detach() for end in ControlChannel.pair()]
        made.callback(os.close, near)
        made.callback(os.close, far)
        failpoint("keeper.member_page")
        page = make_status_page()
        made.callback(os.close, page)
        pidfd = os.dup(host_pidfd)
        made.pop_all()
    return pidfd, near, page, far
