"""A model's code cannot reach into the processes of the server, although it runs under the same uid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.build import write_python
from harness.server import Server
from harness.unprivileged import unprivileged
from mmsup.ipc.environment import DUMPABLE
from mmsup.ipc.specs import TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.root]
CODE = """
import ctypes
import os
import signal

import numpy as np

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_DETACH, PIDFD_GETFD = 16, 17, 438

def memory(pid):
    os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR))

def descriptors(pid):
    os.listdir(f"/proc/{pid}/fd")
    os.readlink(f"/proc/{pid}/fd/1")

def copied_descriptor(pid):
    pidfd = os.pidfd_open(pid)
    try:
        copy = LIBC.syscall(PIDFD_GETFD, pidfd, 1, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    os.close(copy)

def traced(pid):
    if LIBC.ptrace(PTRACE_ATTACH, pid, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    LIBC.ptrace(PTRACE_DETACH, pid, None, None)

def environment(pid):
    open(f"/proc/{pid}/environ").read()

def succeeds(attempt, pid):
    try:
        attempt(pid)
    except OSError:
        return False
    return True

class Model:
    def infer(self, inputs):
        attempts = (memory, descriptors, copied_descriptor, traced, environment)
        pids = [int(each) for each in inputs["pids"]]
        return {"reached": np.array([[succeeds(each, pid) for each in attempts] for pid in pids], np.int64)}
"""


def reached(server: Server, pids: list[int]) -> list[int]:
    """1 for each way in that was open: five for each process."""
    http = server.http()
    try:
        status, reply = http.infer("curious", pids=("INT64", [len(pids)], pids))
    finally:
        http.close()
    assert status == 200, reply
    data = reply["outputs"][0]["data"]
    assert isinstance(data, list)
    return data


@pytest.mark.parametrize("may_inspect", [False, True])
def test_a_model_reaches_neither_memory_nor_descriptors_of_the_server(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, *, may_inspect: bool
) -> None:
    inputs, outputs = (TensorSpec("pids", "INT64", (-1,)),), (TensorSpec("reached", "INT64", (-1, 5)),)
    write_python(tmp_path, "curious", CODE, inputs, outputs)
    env = {DUMPABLE: "true" if may_inspect else ""}
    with unprivileged(tmp_path, tmp_path_factory.mktemp("bin"), env) as server:
        status = server.status()
        pids = [server.process.pid, status["brain"]["pid"], status["gateways"][0]["pid"]]
        found = reached(server, pids)
        if may_inspect:
            assert sum(found) >= 4 * len(pids), "the attempts of this test reach nothing anyway"  # ptrace may be denied
        else:
            assert found == [0] * 5 * len(pids)
            server.ctl("upgrade", ticket="again", force=True)  # the keeper is another program in the same process
            after = server.status()
            pids = [server.process.pid, after["brain"]["pid"], after["gateways"][0]["pid"]]
            assert reached(server, pids) == [0] * 5 * len(pids)
        assert os.path.exists(f"/proc/{server.pid('curious')}")
        assert server.stop() == 0
