"""Without a keeper: this process is the parent. What only a keeper shows is in test_keeper.py."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

from keeper_rig import spawn_of, wait_readable
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.keeper.spawn import EXEC_FAILED, StartedProcess, exec_error, set_oom_score, start

pytestmark = pytest.mark.slow


def result_of(started: StartedProcess) -> tuple[str | None, int]:
    """The exec error, and the exit code."""
    wait_readable(started.pidfd, "death")
    error = exec_error(started.exec_status)
    close_fds([started.pidfd, started.exec_status])
    return error, os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1])


def sh(script: str) -> Spawn:
    return spawn_of("test", "/bin/sh", "-c", script)


def test_a_program_that_runs_has_no_exec_error() -> None:
    assert result_of(start(sh("exit 7"), {}, None)) == ("", 7)


def test_before_the_exec_its_result_is_unknown() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    assert exec_error(read) is None
    os.write(write, b"reason")
    assert exec_error(read) == "reason"
    close_fds([read, write])


def test_a_program_that_cannot_run_reports_the_reason_and_exits_with_127() -> None:
    error, code = result_of(start(spawn_of("test", "/nowhere"), {}, None))
    assert error == "[Errno 2] No such file or directory: '/nowhere'"
    assert code == EXEC_FAILED


def test_arguments_name_the_descriptors_in_order() -> None:
    read, write = os.pipe()
    output, output_end = os.pipe()
    spawn = spawn_of("test", sys.executable, "-c", "import os, sys; print(sys.argv[1:]); os.write(1, b'')")
    assert result_of(start(spawn, {"lifeline": read, "listen:http": write}, output_end)) == ("", 0)
    assert os.read(output, 1000).decode() == f"['lifeline={read}', 'listen:http={write}']\n"
    assert not os.get_inheritable(read)
    close_fds([read, write, output, output_end])


def test_signals_that_the_parent_ignores_or_blocks_have_their_defaults_in_the_child() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        code = "import signal, sys; blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        code += "sys.exit(len(blocked) + (signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL))"
        started = start(spawn_of("test", sys.executable, "-c", code), {}, None)
        assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert result_of(started) == ("", 0)


def test_a_control_group_that_cannot_be_joined_is_named() -> None:
    spawn = Spawn("test", ("/bin/true",), {}, "/", ("/proc/self/status",), (), False, 0, "")  # noqa: FBT003
    error, code = result_of(start(spawn, {}, None))
    assert error is not None
    assert "/proc/self/status" in error
    assert code == EXEC_FAILED


def test_a_parent_out_of_descriptors_starts_nothing_and_leaks_none(tmp_path: Path) -> None:
    taken: list[int] = []
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = len(os.listdir("/proc/self/fd"))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        for free in range(4):  # the first descriptor is missing, then the second, and so on
            close_fds([taken.pop() for _ in range(free)])
            try:
                started = start(sh("exit 0"), {}, None)
            except OSError:
                continue
            assert free >= 2
            assert result_of(started)[0] == ""
    finally:
        close_fds(taken)
    assert len(os.listdir("/proc/self/fd")) == before
    for _ in range(4):
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break


def test_an_oom_score_that_may_not_be_lowered_stays_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, text: str) -> None:
        raise PermissionError(path, text)

    monkeypatch.setattr("mmsup.supervisor.keeper.spawn._write", refuse)
    set_oom_score(-900)
