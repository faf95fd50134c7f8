"""Signals of a process: blocked, and read one by one from a signalfd, which says who sent each."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmsup.ipc.stray_signals import STRAY

HANDLED: Final = STRAY | {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
COMMAND_CHARACTERS: Final = 200
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # SFD_NONBLOCK | SFD_CLOEXEC have the same values
_SIGINFO: Final = struct.Struct("=Iiiii108x")
"""signalfd_siginfo: number, errno, code, and the pid and the uid of the sender; 128 bytes."""
_READ_COUNT: Final = 32
_SIGSET_BYTES: Final = 128
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ReceivedSignal:
    number: int
    sender_pid: int = 0
    """0: the kernel, a terminal, or a process outside of this process's PID namespace."""
    sender_uid: int = 0

    def sender(self) -> str:
        """Who sent it, in words. The command is that of the process with this pid now."""
        if not self.sender_pid:
            return "the kernel, a terminal, or a process outside of this container"
        command = _command(self.sender_pid) or "it has exited"
        return f"pid {self.sender_pid} ({command}), uid {self.sender_uid}"


class SignalQueue:
    """Signals in the order of their arrival."""

    def __init__(self) -> None:
        self._pending: list[ReceivedSignal] = []
        self._fd = -1

    def install(self, selector: selectors.BaseSelector) -> None:
        """Receive signals from now on; each also ends the selector's wait."""
        # After a re-exec all signals are blocked: those that have arrived meanwhile are pending, and are read.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        self._fd = open_signalfd(HANDLED)
        selector.register(self._fd, selectors.EVENT_READ, lambda: None)  # read by __iter__
        signal.pthread_sigmask(signal.SIG_SETMASK, HANDLED)
        self._pending.append(ReceivedSignal(signal.SIGCHLD))  # children that have exited before

    def __iter__(self) -> Iterator[ReceivedSignal]:
        """Remove and yield each pending signal, those included that arrive meanwhile."""
        while self._pending or self._read():
            yield self._pending.pop(0)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, _READ_COUNT * _SIGINFO.size)
        except BlockingIOError:
            return False
        self._pending += [ReceivedSignal(number, pid, uid) for number, _, _, pid, uid in _SIGINFO.iter_unpack(data)]
        return True


@contextlib.contextmanager
def all_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def open_signalfd(numbers: Iterable[int]) -> int:
    mask = sum(1 << (number - 1) for number in numbers).to_bytes(_SIGSET_BYTES, "little")
    fd = int(_libc.signalfd(-1, mask, _FLAGS))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _command(pid: int) -> str:
    """Its command line on one line; empty if there is no such process."""
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}")
        data = (folder / "cmdline").read_bytes() or (folder / "comm").read_bytes()
        text = " ".join(data.decode(errors="replace").replace("\0", " ").split())
        return "".join(each for each in text if each.isprintable())[:COMMAND_CHARACTERS]
    return ""
