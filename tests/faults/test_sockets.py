"""Attacks on the sockets: other users are refused, and a removed or replaced socket file is restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import combination
from harness.invariants import assert_gone, server_processes
from harness.server import Http, Server, eventually, serving
from harness.victim import BYSTANDER, bystander_repository, victim

pytestmark = pytest.mark.slow
NOBODY = 65534
PYTHON = "/usr/bin/python3"
"""An interpreter that every user may run; that of the tests may lie in a folder of root."""
EXPLICIT = ("--model-control-mode", "explicit", "--load-model", BYSTANDER)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(bystander_repository(tmp_path_factory.mktemp("repository")), *EXPLICIT) as running:
        warm(running)
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def warm(server: Server) -> None:
    http = Http(server.address())
    http.infer(BYSTANDER, x=("FP32", [1], [0.0]))
    http.close()


def as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    """The answer of the control socket to a process of another user."""
    code = (
        "import contextlib, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(10)\n"
        "s.connect(sys.argv[1])\n"
        "with contextlib.suppress(BrokenPipeError):  # it may have been refused already\n"
        '    s.sendall(b\'{"verb": "status"}\\n\')\n'
        "print(s.recv(1 << 16).decode())\n"
    )
    return subprocess.run(
        [PYTHON, "-c", code, str(path)], user=NOBODY, capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.fault("F42")
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"there is no {PYTHON} for somebody else")
def test_another_user_is_refused_at_the_control_socket_twice(server: Server) -> None:
    with victim(server, "guarded") as hurt:
        door = server.runtime_dir / "control.sock"
        assert "PermissionError" in as_nobody(door).stderr
        # Somebody has opened the folders and the file: the process behind them looks for itself.
        opened = [server.root, server.runtime_dir, door]
        modes = [each.stat().st_mode for each in opened]
        try:
            for each in opened:
                each.chmod(0o777)
            told = json.loads(as_nobody(door).stdout)
        finally:
            for each, mode in zip(opened, modes, strict=True):
                each.chmod(mode & 0o777)
        assert "forbidden" in str(told)
        hurt.assert_serves()


@pytest.mark.fault("F42")
def test_a_stranger_at_a_workers_own_socket_is_ignored(tmp_path: Path) -> None:
    zmq = pytest.importorskip("zmq")
    with serving(bystander_repository(tmp_path), *EXPLICIT, "--worker-link", "zeromq") as server:
        warm(server)
        with victim(server, "bound") as hurt:
            pid = server.pid(hurt.name)
            context = zmq.Context()
            try:
                for path in server.runtime_dir.glob("w*.*"):
                    for identity in (b"stranger", b"g0.1"):
                        intruder = context.socket(zmq.DEALER)
                        intruder.setsockopt(zmq.LINGER, 0)
                        intruder.setsockopt(zmq.IDENTITY, identity)
                        intruder.connect(f"ipc://{path}")
                        for frame in (b"", b"\xc1", b"\x90", os.urandom(500), b"\x91\x92\x02\x01"):
                            intruder.send(frame)
                        assert not intruder.poll(100), "a stranger got an answer"
                        hurt.assert_serves()
                        intruder.close()
            finally:
                context.destroy(linger=0)
            hurt.assert_serves()
            assert server.pid(hurt.name) == pid
        assert server.stop() == 0


@pytest.mark.fault("F43")
def test_a_runtime_folder_that_is_removed_is_made_again_and_nobody_is_cut_off(server: Server) -> None:
    if combination.is_zeromq():
        pytest.skip("with --worker-link zeromq each worker has a socket there, which is not made again before its exit")
    with victim(server, "folder_gone", hang_limit="30s") as hurt:
        before = {each.name for each in server.runtime_dir.iterdir()}
        with hurt.held() as held:
            shutil.rmtree(server.runtime_dir)
            assert held.is_over is False
        assert held.result()[0] == 200
        eventually((server.runtime_dir / "control.sock").exists, "the control socket is back")
        assert server.events("control_reopened")
        assert server.runtime_dir.stat().st_mode & 0o777 == 0o700
        os.kill(server.pid(hurt.name), signal.SIGKILL)
        hurt.assert_serves()
        brain = server.status()["brain"]
        os.kill(brain["pid"], signal.SIGKILL)
        eventually(lambda: answers(server, brain["generation"] + 1), "the next brain is found as well")
        for name in ("lock", "relay.sock"):  # the keeper and the gateways hold those that were removed
            (server.runtime_dir / name).touch(mode=0o600)
        assert before == {each.name for each in server.runtime_dir.iterdir()}


@pytest.mark.fault("F43")
def test_a_socket_bound_over_ours_is_taken_back(server: Server) -> None:
    with victim(server, "stolen") as hurt:
        door = server.runtime_dir / "control.sock"
        seen = len(server.events("control_reopened"))
        door.unlink()
        with socket.socket(socket.AF_UNIX) as thief:
            thief.bind(str(door))
            thief.listen()
            stolen = door.lstat().st_ino
            eventually(lambda: door.exists() and door.lstat().st_ino != stolen, "it is ours again")
        eventually(lambda: answers(server), "who finds it bound before it listens is refused, for a moment")
        eventually(lambda: len(server.events("control_reopened")) > seen, "it was said")
        hurt.assert_serves()


def answers(server: Server, generation: int = 0) -> bool:
    try:
        return bool(server.status()["brain"]["generation"] >= generation)
    except Exception:  # noqa: BLE001 - not there yet, in one of many ways
        return False
