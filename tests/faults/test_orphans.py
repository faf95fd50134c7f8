"""A process that a model starts in a session of its own ends with the worker, in whatever way the worker ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engines.build import write_python
from harness.invariants import assert_gone, server_processes
from harness.server import Server, eventually, serving
from harness.unprivileged import unprivileged
from keeper_rig import is_alive
from mmsup.ipc.specs import TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.root]
CODE = '''
import glob
import os
import subprocess
import sys

import numpy as np

# Forks once more in a session of its own, so that the process has no parent among ours and a child of its own.
DAEMON = """
import os, subprocess, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if sys.argv[1] == "leave":
    for path in GROUPS:
        open(path, "w").write("0")
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdout=subprocess.DEVNULL, env=ENV)
print(os.getpid(), child.pid, flush=True)
os.close(1)
time.sleep(1000)
"""

class Model:
    def infer(self, inputs):
        mode = inputs["mode"][0].decode()
        groups = glob.glob("/sys/fs/cgroup/*/cgroup.procs")
        if mode == "escape":
            for path in groups:
                open(path, "w").write("0")
            return {"pids": np.array([os.getpid()] * 2, np.int64)}
        environment = {"PATH": os.environ["PATH"]} if mode == "own environment" else dict(os.environ)
        code = DAEMON.replace("GROUPS", repr(groups)).replace("ENV", repr(environment))
        command = [sys.executable, "-c", code, mode]
        output = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout
        return {"pids": np.array([int(each) for each in output.split()], np.int64)}
'''


def write_model(repository: Path, name: str) -> None:
    inputs, outputs = (TensorSpec("mode", "BYTES", (1,)),), (TensorSpec("pids", "INT64", (2,)),)
    write_python(repository, name, CODE, inputs, outputs)


def start_daemon(server: Server, name: str, mode: str = "stay") -> list[int]:
    """The pids of a process of this model and of its child, each in a session of its own."""
    http = server.http()
    try:
        status, reply = http.infer(name, mode=("BYTES", [1], [mode]))
    finally:
        http.close()
    assert status == 200, reply
    pids = reply["outputs"][0]["data"]
    assert all(is_alive(pid) for pid in pids)
    assert isinstance(pids, list)
    return pids


def await_end(pids: list[int]) -> None:
    eventually(lambda: not any(is_alive(pid) for pid in pids), f"{pids} have ended")


@pytest.mark.parametrize("mode", ["stay", "own environment"])
def test_without_cgroups_what_a_model_started_ends_when_its_worker_is_killed_or_unloaded_and_no_other_models_does(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> None:
    write_model(tmp_path, "one")
    write_model(tmp_path, "two")
    with unprivileged(tmp_path, tmp_path_factory.mktemp("bin")) as server:
        assert "no cgroup" in server.log()
        others = start_daemon(server, "two", mode)
        killed = start_daemon(server, "one", mode)
        os.kill(server.pid("one"), signal.SIGKILL)
        await_end(killed)
        server.await_state("one", "ready")
        unloaded = start_daemon(server, "one", mode)
        server.ctl("unload", name="one")
        await_end(unloaded)
        assert all(is_alive(pid) for pid in others)
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)
        await_end(others)


@pytest.mark.parametrize("mode", ["stay", "own environment"])
def test_without_cgroups_what_outlived_a_killed_keeper_is_ended_by_the_next_start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mode: str
) -> None:
    write_model(tmp_path, "one")
    with unprivileged(tmp_path, tmp_path_factory.mktemp("bin")) as server:
        left = start_daemon(server, "one", mode)
        server.process.kill()
        server.process.wait()
        assert all(is_alive(pid) for pid in left)
        server.start_again()
        server.await_ready()
        await_end(left)
        assert server.stop() == 0


@pytest.mark.cgroup1
def test_what_root_has_moved_out_of_its_control_groups_ends_with_the_worker(tmp_path: Path) -> None:
    write_model(tmp_path, "one")
    with serving(tmp_path) as server:
        left = start_daemon(server, "one", "leave")
        assert "mmsup_" not in Path(f"/proc/{left[0]}/cgroup").read_text()
        os.kill(server.pid("one"), signal.SIGKILL)
        await_end(left)
        assert server.stop() == 0


@pytest.mark.cgroup1
def test_a_worker_that_leaves_its_control_group_as_root_is_ended_with_that_reason(tmp_path: Path) -> None:
    write_model(tmp_path, "one")
    with serving(tmp_path) as server:
        (escaped, _) = start_daemon(server, "one", "escape")
        assert "left its control group" in server.await_event("worker_condemned", "one")["text"]
        await_end([escaped])
        server.await_state("one", "ready")
        assert server.stop() == 0
