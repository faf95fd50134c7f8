"""The service manager that chaos plays: listeners outlive a killed server, and nothing below it does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.server import eventually
from mmsup.supervisor.chaos.observe.leak_check import running
from mmsup.supervisor.chaos.server.service_manager import ServiceManager

pytestmark = pytest.mark.slow
SERVER = """
import os, socket, subprocess, sys
from mmsup.supervisor import fdstore
from mmsup.supervisor.notify import Notifier
kept = fdstore.handed_back(os.environ, os.getpid())
listener = kept.get("http") or socket.create_server(("127.0.0.1", 0))
Notifier.from_environ(os.environ, os.getpid()).store("http", listener.fileno())
child = [subprocess.Popen(["sleep", "1000"]).pid] if "leave" in sys.argv and not kept else []
print(listener.getsockname()[1], *child, flush=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""


@pytest.fixture
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServiceManager]:
    made = ServiceManager([sys.executable, "-c", SERVER, *getattr(request, "param", ())], tmp_path)
    yield made
    made.close()


def said(folder: Path) -> list[int]:
    """The numbers of the first line."""
    text = eventually((folder / "output").read_text, "its first line")
    return [int(each) for each in text.split("\n")[0].split()]


def asked(port: int) -> int:
    """The process that answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        return int(connection.recv(20))


def test_the_next_server_has_the_listener_of_the_one_that_was_killed(manager: ServiceManager, tmp_path: Path) -> None:
    (port,) = said(tmp_path)
    first = manager.pid
    assert asked(port) == first
    assert asyncio.run(manager.replace_keeper()) == []
    assert manager.pid != first
    manager.read_notifications()
    for _ in range(2):  # it went back into the store
        assert asked(port) == manager.pid
        asyncio.run(manager.replace_keeper())
    assert asyncio.run(manager.stop(30.0)) != 0
    assert manager.status() is not None


@pytest.mark.parametrize("manager", [("leave",)], indirect=True)
def test_what_outlives_its_keeper_is_told(
    manager: ServiceManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsup.supervisor.chaos.server.service_manager.EXIT_LIMIT_S", 0.3)
    _, child = said(tmp_path)
    assert asyncio.run(manager.replace_keeper()) == [f"I2 process {child} outlived its keeper"]
    os.kill(child, signal.SIGKILL)


def test_only_who_runs_is_alive() -> None:
    with subprocess.Popen(["true"]) as ended:
        eventually(lambda: not running([ended.pid]), "a zombie is not alive")
        assert ended.returncode is None, "it was not reaped for that"
