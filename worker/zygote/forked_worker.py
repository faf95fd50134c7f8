"""Makes of a forked child of a zygote what it would be after an exec: in everything that a model or the keeper can see.

The counterpart of `_exec_child` in supervisor/keeper/spawn.py; the same tests hold both.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.environment import WORKER_MARK
from mmsup.ipc.messages.zygote_control import ForkWorker
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.worker.zygote.process_titles import ProcessTitles
from mmsup.worker.zygote.thread_pools import ThreadPools

_PR_SET_PDEATHSIG: Final = 1
_COERCED: Final = ("LC_CTYPE",)
"""Set by Python itself at its start where the locale is C (PEP 538)."""
_library: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ForkDescriptors:
    """Those that came with a ForkWorker."""

    status: int
    output: int
    inherited: tuple[int, ...]
    groups: tuple[int, ...]


def set_up(request: ForkWorker, descriptors: ForkDescriptors, titles: ProcessTitles, pools: ThreadPools) -> list[str]:
    """In the child; the arguments of a worker's main function. OSError if the kernel refuses something.

    What is left open: the standard descriptors, `inherited`, and `status`, which the caller closes."""
    os.setsid()
    if _library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if os.getppid() != request.keeper:
        os._exit(exit_codes.KEEPER_LOST)
    faulthandler.disable()  # it wrote to the zygote's crash pipe
    names = [f"{name}={fd}" for name, fd in zip(request.inherited, descriptors.inherited, strict=True)]
    argv = [*request.argv, *names]
    titles.write(argv, request.env.get(WORKER_MARK, ""))
    _set_oom_score(request.oom_score_adj)
    if request.limit_mark:
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_RTTIME, (request.limit_mark, hard))
    os.umask(0o077)
    os.chdir(request.cwd)
    _set_up_descriptors(descriptors)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python's own start leaves them
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    coerced = {name: os.environ[name] for name in _COERCED if name in os.environ}
    os.environ.clear()
    os.environ.update(coerced | request.env)
    time.tzset()
    _forget_zygote(argv)
    pools.set_sizes(request.env)
    return names


def _set_oom_score(score: int) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))


def _set_up_descriptors(descriptors: ForkDescriptors) -> None:
    os.dup2(descriptors.output, 1)
    os.dup2(descriptors.output, 2)
    kept = {0, 1, 2, descriptors.status, *descriptors.inherited}  # 0 is /dev/null in a zygote too
    close_fds([fd for fd in map(int, os.listdir("/proc/self/fd")) if fd not in kept])


def _forget_zygote(argv: list[str]) -> None:
    """State of the interpreter and of libraries that an exec would have made anew."""
    main = sys.modules["mmsup.worker.__main__"]
    sys.argv[:] = [str(main.__file__), *argv[3:]]
    sys.orig_argv[:] = argv
    sys.modules["__main__"] = main
    tempfile.tempdir = None
    # The generators of numpy and torch are seeded once, at the import, so that all workers would draw the same numbers.
    # Python's is seeded anew by a hook of its own.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    gc.enable()
