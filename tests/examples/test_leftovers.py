"""The watch that the demonstration trusts: it must see what is left, or its zeros mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# A server of sorts: a memfd, a UNIX and a TCP listener, and a child in a session of its own that holds the memfd too.
SERVER = """
import os, socket, subprocess, sys
fd = os.memfd_create("mmsup-test", 0)
os.write(fd, b"x")
local = socket.socket(socket.AF_UNIX)
local.bind(sys.argv[1] + "/control.sock")
local.listen()
tcp = socket.create_server(("127.0.0.1", 0))
command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
child = subprocess.Popen(command, pass_fds=[fd], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(tcp.getsockname()[1], child.pid, flush=True)
if sys.stdin.readline() == "clean":
    child.kill()
    child.wait()
    os.unlink(sys.argv[1] + "/control.sock")
os._exit(0)
"""

# It is watched from a process of its own, since watching makes a process the one who adopts orphans.
WATCHER = """
import json, os, signal, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from leftovers import ResourceWatch
folder = Path(sys.argv[2])
command = [sys.executable, "-c", sys.argv[3], str(folder)]
server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
watch = ResourceWatch(server.pid)
port, child = map(int, server.stdout.readline().split())
watch.update()
during = watch.left(folder, [port])
server.communicate(sys.argv[4])
after = watch.left(folder, [port])
if sys.argv[4] != "clean":
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(json.dumps({"seen": watch.seen, "during": during, "after": after, "child": child, "port": port}))
"""


def watched(directory: Path, order: str) -> dict[str, Any]:  # JSON
    """What the watcher reports of a server that got this order."""
    command = [sys.executable, "-c", WATCHER, str(EXAMPLES), str(directory), SERVER, order]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.mark.slow
def test_a_running_server_is_seen_with_all_that_it_holds(tmp_path: Path) -> None:
    found = watched(tmp_path, "clean")
    assert found["seen"] == 2
    assert len(found["during"]["processes"]) == 2
    assert f"port {found['port']}" in found["during"]["sockets"]
    assert any("control.sock" in each for each in found["during"]["sockets"])
    assert len(found["during"]["memfds"]) == 1


@pytest.mark.slow
def test_nothing_is_reported_of_one_that_cleaned_up(tmp_path: Path) -> None:
    assert not any(watched(tmp_path, "clean")["after"].values())


@pytest.mark.slow
def test_what_one_leaves_behind_is_named(tmp_path: Path) -> None:
    found = watched(tmp_path, "leave")
    assert found["after"]["processes"] == [f"pid {found['child']}"]
    assert found["after"]["sockets"] == [str(tmp_path / "control.sock")]
    assert len(found["after"]["memfds"]) == 1
