"""Signals of a process: recorded by a handler, handled one by one by its selector loop."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Final

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class SignalQueue:
    """Signal numbers in the order of their arrival."""

    def __init__(self) -> None:
        self._pending: list[int] = []

    def install(self, selector: selectors.BaseSelector) -> None:
        """Install the handlers. Each signal also ends the selector's wait, by a byte in a wakeup socket."""
        wakeup, write = socket.socketpair()
        for end in (wakeup, write):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        # The bytes carry no information: when the socket is full, as after many exits at once, more may be lost.
        signal.set_wakeup_fd(write.detach(), warn_on_full_buffer=False)
        selector.register(wakeup, selectors.EVENT_READ, lambda: wakeup.recv(4096))
        for number in HANDLED:
            signal.signal(number, self._on_signal)
        # After a re-exec all signals are blocked, so none was lost; children that have exited meanwhile are reaped now.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._pending.append(signal.SIGCHLD)

    def __iter__(self) -> Iterator[int]:
        """Remove and yield each pending signal, those included that arrive meanwhile."""
        while self._pending:
            yield self._pending.pop(0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        self._pending.append(number)


@contextlib.contextmanager
def all_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
