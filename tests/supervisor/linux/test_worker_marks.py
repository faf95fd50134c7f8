"""A process is known to come from a worker by its environment, or by a limit that it has inherited."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmsup.ipc.environment import WORKER_MARK
from mmsup.supervisor.linux.worker_marks import is_of_server, mark_number, read_mark, worker_mark

MARK = worker_mark("mmsup_a", "w1.2")
PROGRAM = f"""
import os
from mmsup.supervisor.linux.worker_marks import read_mark, set_limit_mark
set_limit_mark({{"{WORKER_MARK}": "{MARK}"}})
pid = os.fork()
if pid == 0:
    os.setsid()
    os.execve("/bin/sleep", ["sleep", "1000"], {{}})
print(pid, flush=True)
os.waitpid(pid, 0)
"""


def test_a_child_with_an_environment_of_its_own_is_known_by_its_limit() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert read_mark(child) == mark_number(MARK)
        finally:
            subprocess.run(["/bin/kill", "-9", str(child)], check=True)
    assert read_mark(child) == 0, "it has exited"


def test_the_environment_alone_is_enough() -> None:
    program = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={WORKER_MARK: MARK}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_mark(process.pid) == mark_number(MARK)
        process.communicate(b"\n")


@pytest.mark.parametrize(("mark", "is_of"), [(MARK, True), ("mmsup_a/w2.1", True), ("mmsup_b/w1.2", False)])
def test_a_mark_names_server_and_worker(mark: str, is_of: bool) -> None:
    assert is_of_server(mark_number(mark), "mmsup_a") == is_of
    assert (mark_number(mark) == mark_number(MARK)) == (mark == MARK)


def test_no_mark_is_of_no_server() -> None:
    assert not is_of_server(0, "mmsup_a")
    assert not is_of_server(0, "")
