"""System calls without which a server cannot work, tried once before it starts.

A container's seccomp profile or an old kernel may refuse them. Without this check the server would fail at the first
use: with a trace, or while its sockets listen and nobody answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Final

from mmsup.supervisor.linux.signal_queue import open_signalfd

_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


def refusal() -> str:
    """Why no server can run here, as one sentence; empty if it can."""
    refused = {name: error for name, call in _CALLS.items() if (error := _error(call)) is not None}
    if not refused:
        return ""
    names = ", ".join(f"{name} ({error.strerror or error})" for name, error in refused.items())
    if any(error.errno in _NO_ROOM for error in refused.values()):
        return f"this process cannot start a server: {names}: raise the limit that is meant (ulimit -n, memory)"
    return (
        f"this system refuses {names}, without which no server can run: allow it in the container's seccomp profile "
        "(RuntimeDefault of a current runtime does), or use Linux 5.9 or later"
    )


def fill_standard_descriptors() -> None:
    """Open /dev/null for each of 0, 1, 2 that is closed: else the next open() would get that number, and what is
    printed would be written into it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _error(call: Callable[[], None]) -> OSError | None:
    try:
        call()
    except OSError as error:
        return error
    return None


def _try_memfd_create() -> None:
    fd = os.memfd_create("mmsup-check", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def _try_pidfd_open() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_pidfd_send_signal() -> None:
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        return  # is told by its own name
    try:
        signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def _try_signalfd() -> None:
    os.close(open_signalfd(()))


def _try_eventfd() -> None:
    os.close(os.eventfd(0, os.EFD_CLOEXEC))


def _try_socketpair() -> None:
    for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        each.close()


def _try_subreaper() -> None:
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, *(ctypes.c_ulong(each) for each in (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _try_epoll() -> None:
    with contextlib.closing(select.epoll()):
        pass


_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_CALLS: Final[Mapping[str, Callable[[], None]]] = {
    "memfd_create": _try_memfd_create,
    "pidfd_open": _try_pidfd_open,
    "pidfd_send_signal": _try_pidfd_send_signal,
    "signalfd4": _try_signalfd,
    "eventfd2": _try_eventfd,
    "socketpair": _try_socketpair,
    "prctl(PR_SET_CHILD_SUBREAPER)": _try_subreaper,
    "epoll_create1": _try_epoll,
}
"""By the name that a seccomp profile uses. uvloop needs eventfd2; timerfd and unshare are not used."""
