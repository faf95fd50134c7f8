"""Starts one child process: fork, set up what Spawn asks for, exec. The keeper alone calls this, from its one thread.

The child inherits the descriptors that its `NAME=FD` arguments name and no others. It gets the environment of Spawn, a
session of its own, no blocked or ignored signal, and SIGKILL when the keeper dies. If the program cannot be run, the
child writes the reason into the exec status pipe, which a successful exec closes. Nothing waits for the exec: the
keeper reads the pipe when it becomes readable.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.supervisor.linux.idle_group import is_idle_group
from mmsup.supervisor.linux.worker_marks import set_limit_mark

EXEC_FAILED: Final = 127
"""Exit status of a child whose program could not be run, as in a shell."""
EXEC_STATUS_BYTES: Final = 4096

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class StartedProcess:
    """A forked child. The caller of `start` owns both descriptors and reaps the child."""

    pid: int
    pidfd: int
    exec_status: int


def own_process(token: str, argv: Sequence[str], oom_score_adj: int) -> Spawn:
    """A child in the keeper's own environment, without cgroup."""
    return Spawn(
        token, tuple(argv), dict(os.environ), ".", (), (), counter_tables=False, oom_score_adj=oom_score_adj, note=""
    )


def start(spawn: Spawn, inherited: Mapping[str, int], output: int | None) -> StartedProcess:
    """Fork a child that runs the program of `spawn`; `output` is its standard output and error, None for the keeper's.

    OSError if no process can be started now. Whether the exec has succeeded, `exec_error` tells later.
    """
    keeper = os.getpid()
    failpoint("keeper.doubt")
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    # Blocked until the child has reset its handlers: before that, a signal would write into the keeper's wakeup socket.
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
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid cannot have been reused
        raise


def exec_error(exec_status: int) -> str | None:
    """None before the exec; empty once the program runs; else the reason why it could not be run."""
    try:
        return os.read(exec_status, EXEC_STATUS_BYTES).decode(errors="replace")
    except BlockingIOError:
        return None


def become_subreaper() -> None:
    """Make orphaned descendants of this process its own children, instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_oom_score(score: int, pid: int | str = "self") -> None:
    """Write the oom_score_adj of a process; without the privilege, or if it has exited, nothing changes."""
    with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
        _write(f"/proc/{pid}/oom_score_adj", str(score))


def _exec_child(
    spawn: Spawn, inherited: Mapping[str, int], output: int | None, exec_status: int, keeper: int
) -> NoReturn:
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(exit_codes.KEEPER_LOST)
        failpoint("keeper.child_group")
        for path in spawn.procs_files:
            _join(path)
        set_oom_score(spawn.oom_score_adj)  # refused here unless we are root (ipc/inspection.py); see Children
        set_limit_mark(spawn.env)
        os.umask(0o077)
        os.chdir(spawn.cwd)
        _set_up_descriptors(inherited, output)
        _reset_signals()
        failpoint("keeper.child_exec")
        names = [f"{name}={fd}" for name, fd in inherited.items()]
        os.execve(spawn.argv[0], [*spawn.argv, *names], spawn.env)  # noqa: S606 - no shell is meant
    except BaseException as error:  # noqa: BLE001 - the keeper's own code must never continue in the child
        text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        os.write(exec_status, text.encode(errors="replace")[:EXEC_STATUS_BYTES])
    os._exit(EXEC_FAILED)


def _join(procs_file: str) -> None:
    """Join a control group; one that only lets it start behind others is not worth a failed start."""
    with contextlib.suppress(OSError) if is_idle_group(procs_file) else contextlib.nullcontext():
        _write(procs_file, "0")


def _set_up_descriptors(inherited: Mapping[str, int], output: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    for fd in inherited.values():
        os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's own signature


def _reset_signals() -> None:
    """Ignored and blocked signals would stay so across exec."""
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
