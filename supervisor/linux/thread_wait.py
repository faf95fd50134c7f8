"""What a thread that does not run waits for, from what the kernel shows of it. Pure.

A thread that waits for a disk, for a socket or (counted as one) for a GPU's device file makes progress by somebody
else's work; one that waits for a lock, a pause, a pipe or a child of its own does not: whoever shall wake it belongs to
the same worker and is looked at itself.
"""

from __future__ import annotations

import enum
import platform
from collections.abc import Callable
from typing import Final


class Wait(enum.Enum):
    NOTHING_OUTSIDE = 0
    """It runs, or waits for a lock, a pause, a pipe, a child."""
    DISK = 1
    SOCKET = 2
    STOPPED = 3
    """Stopped, traced or frozen: it cannot run."""


_FROZEN: Final = ("__refrigerator", "refrigerator", "do_freezer_trap", "get_signal", "cgroup_freezer", "do_signal_stop")
_NEVER_IN_D: Final = (
    "hrtimer_nanosleep", "do_nanosleep", "common_nsleep", "futex_", "do_futex", "do_wait", "__do_wait", "kernel_wait",
    "sigsuspend", "do_sigtimedwait", "do_pause", "sys_pause", "__x64_sys_pause", "pipe_", "anon_pipe_", "eventfd_",
)  # fmt: skip
"""Sleeps that a signal ends. Since Linux 6.1 a thread that is frozen in one stays there, in state D."""
_OWN_WAITS_IN_D: Final = ("wait_for_vfork_done", "kernel_clone", "_do_fork")
"""A parent in vfork is in state D and waits for its own child."""
_DISK_WAITS: Final = ("request_wait_answer", "fuse_", "read_events", "io_cqring_wait", "io_schedule", "folio_wait")
"""Waits for file systems in user space and for asynchronous reads, which are interruptible."""
_SOCKET_WAITS: Final = (
    "wait_woken", "sk_wait", "sk_stream_wait", "inet_", "tcp_", "unix_stream", "unix_wait", "__skb_wait", "skb_wait",
    "do_poll", "do_sys_poll", "poll_schedule", "do_select", "ep_poll", "vsock_",
)  # fmt: skip
"""Where the kernel shows no system call (another user, Yama), every poll counts as one for sockets."""

_BY_DESCRIPTOR: Final = {
    "x86_64": (0, 1, 16, 19, 20, 42, 43, 44, 45, 46, 47, 288, 299, 307),
    "aarch64": (29, 63, 64, 65, 66, 202, 203, 206, 207, 211, 212, 242, 243, 269),
}
"""Numbers of read, write, ioctl, connect, accept, send, receive, whose first argument is the descriptor."""
_OF_MANY: Final = {
    "x86_64": {7: "poll", 271: "poll", 23: "select", 270: "select", 232: "epoll", 281: "epoll", 441: "epoll"},
    "aarch64": {73: "poll", 72: "select", 22: "epoll", 441: "epoll"},
}
_CALLS: Final = {
    machine: {**dict.fromkeys(numbers, "fd"), **_OF_MANY[machine]} for machine, numbers in _BY_DESCRIPTOR.items()
}
"""System calls that may wait for a socket, by machine, and how they name it."""


def wait_of(state: str, wchan: str, sockets: int | None) -> Wait:
    """`state`: the letter of /proc/PID/stat; `wchan`: the kernel function it sleeps in, empty if not shown; `sockets`:
    how many sockets its system call waits for, None if that is not shown."""
    if state in "Tt" or (state in "DS" and wchan.startswith(_FROZEN)):
        return Wait.STOPPED
    if state == "D" and wchan.startswith((*_NEVER_IN_D, *_SOCKET_WAITS)):
        return Wait.STOPPED
    if state == "D":
        return Wait.NOTHING_OUTSIDE if wchan.startswith(_OWN_WAITS_IN_D) else Wait.DISK
    if state != "S":
        return Wait.NOTHING_OUTSIDE
    if wchan.startswith(_DISK_WAITS):
        return Wait.DISK
    waits = wchan.startswith(_SOCKET_WAITS) if sockets is None else sockets > 0
    return Wait.SOCKET if waits else Wait.NOTHING_OUTSIDE


def sockets_awaited(
    call: str,
    is_socket: Callable[[int], bool],
    polled: Callable[[int, int], list[int]],
    watched: Callable[[int], list[int]],
    machine: str = platform.machine(),
) -> int | None:
    """How many sockets a blocked system call waits for, None if unknown. `call`: /proc/PID/syscall; `polled`: the
    descriptors of an array of pollfd, by address and length; `watched`: those of an epoll descriptor."""
    fields = call.split()
    if machine not in _CALLS or not fields:
        return None
    if len(fields) < 7:  # `running`, or no system call
        return 0
    how = _CALLS[machine].get(int(fields[0]), "")
    first, second = int(fields[1], 16), int(fields[2], 16)
    match how:
        case "fd":
            return int(is_socket(first))
        case "poll":
            return sum(map(is_socket, polled(first, second)))
        case "epoll":
            # The event loops of Python and others watch one socket of their own, by which other threads wake them.
            return max(sum(map(is_socket, watched(first))) - 1, 0)
        case "select":
            return int(first > 0)
        case _:
            return 0
