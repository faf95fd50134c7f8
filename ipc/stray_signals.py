"""Signals that mean nothing to a process of a server, and whose default would end it: each is logged and ignored.

Handlers, not SIG_IGN: an ignored signal stays ignored across exec, and a model's child would inherit that. What a model
installs itself replaces them.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import ClassVar, Final

STRAY: Final = frozenset(
    {
        *(signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF),
        *(signal.SIGIO, signal.SIGPWR, signal.Signals["SIGSTKFLT"], signal.SIGPIPE, signal.SIGXCPU),
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
"""Without SIGTERM and SIGINT, which end a process, SIGQUIT, and what the kernel sends for a fault of the process.

Python itself ignores SIGXFSZ.
"""

_SA_RESTART: Final = 0x10000000


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones have no names
        return f"SIG{number}"


def ignore_stray_signals(log: Callable[[str], None], but: Iterable[int] = ()) -> None:
    """Pass a sentence to `log` for each stray signal from now on, except those in `but`, which stay as they are. Also
    except those that are ignored already, or have a handler."""

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of handlers
        log(f"ignored {signal_name(number)}, which means nothing to this process")

    for number in STRAY - set(but):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, on_signal)
            _run_alone(number)


class _SigAction(ctypes.Structure):
    """`struct sigaction`, as glibc and musl have it."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def _run_alone(number: int) -> None:
    """Block all signals while the handler of this one runs in C, and let it interrupt no system call.

    Python's handlers block nothing and run on the alternative stack of faulthandler, which overflows when some twenty
    different signals come at once.
    """
    library, action = ctypes.CDLL(None), _SigAction()
    if library.sigaction(number, None, ctypes.byref(action)) == 0:
        action.mask[:] = [0xFF] * len(action.mask)
        action.flags |= _SA_RESTART
        library.sigaction(number, ctypes.byref(action), None)
