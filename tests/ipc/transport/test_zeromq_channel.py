"""The link's socket rules: nothing into the void, nothing to a successor, no silent drop."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import zmq

from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.zeromq_channel import ZmqContext, ZmqGatewayChannel, ZmqWorkerChannel

DEADLINE_S = 20.0
T = TypeVar("T")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as name:
        yield Path(name)


@pytest.fixture
def hub() -> Iterator[ZmqContext]:
    made = ZmqContext()
    yield made
    made.close()


def until(fd: int, attempt: Callable[[], T | None]) -> T:
    """What `attempt` gives at last; it is tried again at each event on the descriptor."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        result = attempt()
        if result:
            return result
        select.select([fd], [], [], 0.05)  # ZMQ_FD is edge-triggered: the pause bounds a lost race of the test's own
    raise AssertionError("nothing came")


def connected(hub: ZmqContext, worker: ZmqWorkerChannel, path: Path, identity: bytes) -> ZmqGatewayChannel:
    gateway = hub.connect(str(path), identity)
    until(gateway.fileno(), lambda: gateway.send(b"hello"))
    assert until(worker.fileno(), worker.receive) == (identity, b"hello")
    return gateway


def test_frames_go_both_ways(folder: Path, hub: ZmqContext) -> None:
    worker = ZmqWorkerChannel(str(folder / "w1.1"))
    gateway = connected(hub, worker, folder / "w1.1", b"g0.1")
    assert worker.send(b"g0.1", b"answer")
    assert until(gateway.fileno(), gateway.receive) == b"answer"
    gateway.close()
    worker.close()


def test_replies_that_arrived_before_their_sender_left_are_still_there(folder: Path, hub: ZmqContext) -> None:
    for life in range(5):
        path = folder / f"w1.{life}"
        worker = ZmqWorkerChannel(str(path))
        gateway = connected(hub, worker, path, b"g0.1")
        monitor = gateway._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        for number in range(50):
            assert worker.send(b"g0.1", b"%d" % number)
        worker.close(linger_ms=1000)
        assert monitor.poll(int(DEADLINE_S * 1000)), "the end of the worker was not noticed"
        gateway._socket.getsockopt(zmq.EVENTS)  # as every poll does: ZeroMQ takes note of what has happened
        assert [gateway.receive() for _ in range(50)] == [b"%d" % number for number in range(50)]
        monitor.close(0)
        gateway.close()


def test_an_unknown_peer_is_an_error_and_no_silent_drop(folder: Path) -> None:
    worker = ZmqWorkerChannel(str(folder / "w1.1"))
    with pytest.raises(ChannelClosed):
        worker.send(b"g9.9", b"x")
    worker.close()


def test_thousands_of_frames_pass_without_a_limit_of_zeromqs_own(folder: Path, hub: ZmqContext) -> None:
    worker = ZmqWorkerChannel(str(folder / "w1.1"))
    gateway = connected(hub, worker, folder / "w1.1", b"g0.1")
    for _ in range(3000):
        assert gateway.send(b"x")
    seen = 0
    while seen < 3000:
        assert until(worker.fileno(), worker.receive)[1] == b"x"
        seen += 1
    gateway.close()
    worker.close()


def test_the_socket_file_is_private(folder: Path) -> None:
    worker = ZmqWorkerChannel(str(folder / "w1.1"))
    assert stat.S_IMODE(os.stat(folder / "w1.1").st_mode) & 0o077 == 0
    worker.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(folder / "w1.1")
