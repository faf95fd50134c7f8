"""One child process: fork, then exactly what Spawn says, then exec. Only the keeper calls this, from its one thread.

The child gets its descriptors as `NAME=FD` arguments and no others, its environment as given, a session of its own,
no signal blocked or ignored, and SIGKILL when the keeper dies. If the program cannot be run, the child says why on a
pipe that a successful exec closes: the *doubt*, which the keeper reads when it is ready; nobody waits for an exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import Spawn

EXEC_FAILED: Final = 127
"""Exit status of a child whose program could not be run, as shells have it."""
EXEC_STATUS_BYTES: Final = 4096

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class StartedProcess:
    """A child that was forked. Whoever called `start` owns both descriptors and reaps the child."""

    pid: int
    pidfd: int
    exec_status: int


def start(spawn: Spawn, inherited: Mapping[str, int], output: int | None) -> StartedProcess:
    """Fork a child that becomes `spawn`; `output` is its standard output and error, None for the keeper's own.

    OSError if there can be no process now. Whether the program runs is told by `verdict`.
    """
    keeper = os.getpid()
    failpoint("keeper.doubt")
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Blocked until the child's handlers are reset: a signal that met the child before would reach the keeper's pipe.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        failpoint("keeper.fork")
        pid = os.fork()
        if pid == 0:
            _exec_child(spawn, inherited, output, write, keeper)
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    failpoint("keeper.forked")
    try:
        failpoint("keeper.pidfd")
        return StartedProcess(pid, os.pidfd_open(pid), read)
    except OSError:
        os.close(read)
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        raise


def exec_error(doubt: int) -> str | None:
    """None while the child is on its way; empty once its program runs; else why it does not."""
    try:
        return os.read(doubt, EXEC_STATUS_BYTES).decode(errors="replace")
    except BlockingIOError:
        return None


def become_subreaper() -> None:
    """For the keeper: orphans of its children become its own children, not init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def lower_oom_score(score: int) -> None:
    """Write our own oom_score_adj; without the privilege it stays where it was."""
    with contextlib.suppress(PermissionError):
        _write("/proc/self/oom_score_adj", str(score))


def _exec_child(spawn: Spawn, inherited: Mapping[str, int], output: int | None, doubt: int, keeper: int) -> NoReturn:
    """In the child."""
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(exit_codes.KEEPER_LOST)
        failpoint("keeper.child_group")
        for path in spawn.procs_files:
            _write(path, "0")
        lower_oom_score(spawn.oom_score_adj)
        os.umask(0o077)
        os.chdir(spawn.cwd)
        _set_up_descriptors(inherited, output)
        _reset_signals()
        failpoint("keeper.child_exec")
        names = [f"{name}={fd}" for name, fd in inherited.items()]
        os.execve(spawn.argv[0], [*spawn.argv, *names], spawn.env)  # noqa: S606 - no shell is meant
    except BaseException as error:  # noqa: BLE001 - whatever it is, the keeper's code must not go on here
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        os.write(doubt, text.encode(errors="replace")[:EXEC_STATUS_BYTES])
    os._exit(EXEC_FAILED)


def _set_up_descriptors(inherited: Mapping[str, int], output: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    for fd in inherited.values():
        os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's own signature


def _reset_signals() -> None:
    """An ignored signal stays ignored across exec, and a blocked one blocked."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl({option})")
