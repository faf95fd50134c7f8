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
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A session of a shell and two children."""
    argv = ["/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait"]
    with subprocess.Popen(argv, start_new_session=True) as shell:
        wait_until(lambda: len(children_of(shell.pid)) == 2, "two children")
        yield shell
        end_session(shell.pid)


def test_a_process_is_seen_as_it_is() -> None:
    kin = read_stat(os.getpid())
    assert kin is not None
    assert (kin.parent, kin.session) == (os.getppid(), os.getsid(0))
    assert kin.state in "RS"


def test_a_name_full_of_brackets_misleads_nobody(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "1000"]) as process:
        wait_until(lambda: ")" in Path(f"/proc/{process.pid}/comm").read_text(), "the exec")
        kin = read_stat(process.pid)
        process.kill()
    assert kin is not None
    assert kin.parent == os.getpid()


def test_who_is_gone_is_none() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert read_stat(process.pid) is None


def test_a_signal_reaches_all_of_a_session(family: subprocess.Popen[bytes]) -> None:
    children = children_of(family.pid)
    signal_session(family.pid, signal.SIGTERM)
    assert family.wait(DEADLINE_S) == -signal.SIGTERM
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")


def test_a_session_ends_after_its_leader_died_and_before_it_is_reaped(family: subprocess.Popen[bytes]) -> None:
    children = children_of(family.pid)
    os.kill(family.pid, signal.SIGKILL)
    os.waitid(os.P_PID, family.pid, os.WEXITED | os.WNOWAIT)
    assert all(is_alive(pid) for pid in children)
    end_session(family.pid)
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")


def test_a_session_that_forks_on_and_on_ends(tmp_path: Path) -> None:
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
    return [pid for pid, kin in found.items() if kin is not None and kin.session == session and kin.state != "Z"]


def test_children_end_with_those_they_leave_behind(family: subprocess.Popen[bytes]) -> None:
    children = children_of(family.pid)
    assert not end_children(family.pid)
    wait_until(lambda: not any(is_alive(pid) for pid in children), "all are gone")
    assert end_children(family.pid)
