from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness.server import eventually
from mmsup.supervisor.linux.process_activity import ProcessActivity, read_activity
from mmsup.supervisor.linux.thread_wait import Wait

pytestmark = pytest.mark.slow
CODE = {
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "pause": "import time; time.sleep(1000)",
    "accept": "import socket; server = socket.create_server(('127.0.0.1', 0)); server.accept()",
    "datagram": "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(1000); s.recv(1)",
    "loop of asyncio": "import asyncio; asyncio.run(asyncio.sleep(1000))",
    "pipe": "import os; os.read(os.pipe()[0], 1)",
    "computation": "while True: pass",
    "computation of a child": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])",
}


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, "-c", CODE[request.param]], start_new_session=True)
    yield running
    children = [pid for pid, _ in read_activity(running.pid, (), 0).threads if pid != running.pid]
    for pid in (running.pid, *children):
        subprocess.run(["/bin/kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)
    running.wait()


def main_wait(activity: ProcessActivity, pid: int) -> Wait | None:
    thread = dict(activity.threads).get(pid)
    return thread.wait if thread is not None and thread.state == "S" else None


@pytest.mark.parametrize("process", ["accept", "datagram"], indirect=True)
def test_a_process_that_waits_for_a_socket_is_seen_to(process: subprocess.Popen[bytes]) -> None:
    eventually(lambda: main_wait(read_activity(process.pid, (), 0), process.pid) is Wait.SOCKET, "it waits there")


@pytest.mark.parametrize("process", ["lock", "pause", "pipe", "loop of asyncio"], indirect=True)
def test_a_process_that_waits_for_nothing_outside_is_not_taken_for_one_that_does(
    process: subprocess.Popen[bytes],
) -> None:
    def rests() -> bool:
        """It has not run between two looks, and waits."""
        first, second = (read_activity(process.pid, (), time.monotonic_ns()) for _ in range(2))
        return first.threads == second.threads and main_wait(second, process.pid) is Wait.NOTHING_OUTSIDE

    eventually(rests, "it has come to its wait")


@pytest.mark.parametrize("process", ["computation", "computation of a child"], indirect=True)
def test_the_processor_time_of_a_process_and_of_its_children_rises(process: subprocess.Popen[bytes]) -> None:
    first = read_activity(process.pid, (), 0).cpu_ns
    eventually(lambda: read_activity(process.pid, (), 0).cpu_ns > first + 500_000_000, "half a second was used")


def test_a_process_that_is_gone_does_nothing() -> None:
    gone = read_activity(2**22 + 1, (), 0)
    assert (gone.cpu_ns, gone.threads, gone.waits_outside) == (0, (), False)
