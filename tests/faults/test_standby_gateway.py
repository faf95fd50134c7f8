"""The standby gateway of a real server: what it holds, when it takes over, and that its own death is harmless."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engines.build import write_identity_onnx
from harness.bystander import Bystander
from harness.invariants import assert_clean, assert_gone, descriptor_kinds, server_processes, settled
from harness.server import Http, Server, eventually, serving

pytestmark = pytest.mark.slow

ON = ("--spare-gateway", "true")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_identity_onnx(tmp_path, "one")
    return tmp_path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For tests after which a gateway serves, and another one stands by."""
    home = tmp_path_factory.mktemp("models")
    write_identity_onnx(home, "one")
    with running(home) as shared:
        yield shared
        everyone = server_processes(shared)
        assert shared.stop() == 0
        assert_gone(shared, everyone)


@contextlib.contextmanager
def running(repository: Path, *flags: str) -> Iterator[Server]:
    """A server whose standby gateway is running."""
    with serving(repository, *ON, *flags) as server:
        spare(server)
        http = Http(server.address())
        assert http.infer("one", x=("FP32", [1], [1.0]))[0] == 200
        http.close()
        yield server


def spare(server: Server, but: int = 0) -> int:
    """Wait for a standby gateway other than `but`; its pid."""

    def found() -> int:
        rows = [each["pid"] for each in server.ctl("ps")["processes"] if each["state"] == "spare"]
        return next((pid for pid in rows if pid != but), 0)

    return eventually(found, "a spare gateway")


def gateways(server: Server) -> list[int]:
    return [each["pid"] for each in server.status()["gateways"]]


@pytest.mark.fault("F26")
def test_a_killed_gateways_place_is_the_standbys_and_another_standby_follows(server: Server) -> None:
    ended = len(server.events("spare_exit"))
    before, waiting, (old,) = settled(server), spare(server), gateways(server)
    with Bystander(server, "one", may_be_cut=True) as one:
        os.kill(old, signal.SIGKILL)
        one.await_more(20)
        assert gateways(server) == [waiting]
        assert spare(server, but=waiting) != old
    assert len(server.events("spare_exit")) == ended
    assert_clean(before, server)


@pytest.mark.fault("F26")
def test_connections_of_the_other_gateway_are_untouched(repository: Path) -> None:
    with running(repository, "--gateways", "2") as server, Bystander(server, "one") as one:
        ours = {each.laddr.port for each in psutil.Process().net_connections("tcp")}
        (other,) = [pid for pid in gateways(server) if not ours & _clients(pid)]
        os.kill(other, signal.SIGKILL)
        eventually(lambda: other not in gateways(server) and None not in gateways(server), "two gateways")
        one.await_more(20)


def _clients(pid: int) -> set[int]:
    """Ports of the clients of a gateway."""
    ends = psutil.Process(pid).net_connections("tcp")
    return {each.raddr.port for each in ends if each.raddr}


@pytest.mark.fault("F27")
def test_a_gateway_that_hangs_is_followed_by_the_standby(server: Server) -> None:
    waiting, (old,) = spare(server), gateways(server)
    os.kill(old, signal.SIGSTOP)
    eventually(lambda: gateways(server) == [waiting], "the spare in its place")
    http = Http(server.address())
    assert http.infer("one", x=("FP32", [1], [1.0]))[0] == 200
    http.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_standby_that_ends_or_hangs_is_followed_by_another_unnoticed(server: Server, number: signal.Signals) -> None:
    ended = len(server.events("gateway_exit"))
    with Bystander(server, "one"):
        before, old = settled(server), spare(server)
        os.kill(old, number)
        assert spare(server, but=old)
        assert len(server.events("gateway_exit")) == ended
        assert_clean(before, server)


def test_a_standby_accepts_nobody_and_holds_no_memory_for_tensors(server: Server) -> None:
    waiting, (serves,) = spare(server), gateways(server)
    psutil.Process(serves).suspend()
    with socket.create_connection(server.address()) as client:
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        held = descriptor_kinds(waiting)
        assert not any("arena" in kind or "eventpoll" in kind for kind in held), held
        assert not _clients(waiting)
        psutil.Process(serves).resume()
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.fault("F25", "F26")
def test_controller_and_gateway_killed_at_once_leave_the_place_to_the_standby(server: Server) -> None:
    before, waiting, (old,) = settled(server), spare(server), gateways(server)
    with Bystander(server, "one", may_be_cut=True) as one:
        for pid in (server.status()["brain"]["pid"], old):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: gateways(server) == [waiting], "the spare in its place")
        one.await_more(20)
    assert_clean(before, server)


@pytest.mark.fault("F30")
def test_an_upgrade_renews_the_standby_too(server: Server) -> None:
    ended = len(server.events("gateway_exit"))
    before, old = settled(server), spare(server)
    with Bystander(server, "one") as one:
        server.ctl("upgrade", ticket="a test's", force=True)
        assert spare(server, but=old)
        assert not psutil.pid_exists(old)
        one.pids = server.pids("one")  # it was followed, and is to stay from here on
    assert len(server.events("gateway_exit")) == ended
    assert_clean(before, server)


@pytest.mark.fault("F25b")
def test_the_standby_does_not_survive_the_keeper(repository: Path) -> None:
    with running(repository) as server:
        waiting = psutil.Process(spare(server))
        server.process.kill()
        server.process.wait()
        assert psutil.wait_procs([waiting], timeout=10)[1] == []
