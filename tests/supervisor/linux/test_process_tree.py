from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import DEADLINE_S, is_alive, wait_until
from mmsup.supervisor.linux.process_tree import end_children, end_session, read_stat, signal_session

pytestmark = pytest.mark.slow


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def session() -> Iterator[subprocess.Popen[bytes]]:
    """A session of a shell and two children."""
    argv = ["/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait"]
    with subprocess.Popen(argv, start_new_session=True) as shell:
        wait_until(lambda: len(children_of(shell.pid)) == 2, "two children")
        yield shell
        end_session(shell.pid)


def test_the_stat_of_a_process_is_read() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    assert (stat.parent, stat.session) == (os.getppid(), os.getsid(0))
    assert stat.state in "RS"


def test_a_process_name_may_contain_brackets(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "1000"]) as process:
        wait_until(lambda: ")" in Path(f"/proc/{process.pid}/comm").read_text(), "the exec")
        stat = read_stat(process.pid)
        process.kill()
    assert stat is not None
    assert stat.parent == os.getpid()


def test_an_exited_process_has_no_stat() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert read_stat(process.pid) is None


def test_a_signal_reaches_the_whole_session(session: subprocess.Popen[bytes]) -> None:
    children = children_of(session.pid)
    signal_session(session.pid, signal.SIGTERM)
    assert session.wait(DEADLINE_S) == -signal.SIGTERM
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")


def test_a_session_is_killed_before_its_dead_leader_is_reaped(session: subprocess.Popen[bytes]) -> None:
    children = children_of(session.pid)
    os.kill(session.pid, signal.SIGKILL)
    os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT)
    assert all(is_alive(pid) for pid in children)
    end_session(session.pid)
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")


def test_a_session_that_keeps_forking_is_killed(tmp_path: Path) -> None:
    script = "while :; do (while :; do sleep 0.001; done) & sleep 0.001; done"
    with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True) as shell:
        wait_until(lambda: len(children_of(shell.pid)) > 3, "it forks")
        os.kill(shell.pid, signal.SIGKILL)
        os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOWAIT)
        end_session(shell.pid)
        wait_until(lambda: not alive_in(shell.pid), "all are gone")


def alive_in(session: int) -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = {pid: read_stat(pid) for pid in pids}
    return [pid for pid, stat in found.items() if stat is not None and stat.session == session and stat.state != "Z"]


def test_children_are_killed_with_the_orphans_that_they_leave(session: subprocess.Popen[bytes]) -> None:
    children = children_of(session.pid)
    assert not end_children(session.pid)
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")
    assert end_children(session.pid)
