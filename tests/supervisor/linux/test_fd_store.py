from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mmsup.supervisor.linux import fd_store
from mmsup.supervisor.linux.sd_notify import SystemdNotifier


@pytest.fixture
def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def environ_of(pid: int, count: str, names: str) -> dict[str, str]:
    return {"LISTEN_PID": str(pid), "LISTEN_FDS": count, "LISTEN_FDNAMES": names, "PATH": "/bin"}


def test_what_is_handed_back_goes_by_its_name(monkeypatch: pytest.MonkeyPatch, listening: socket.socket) -> None:
    first = os.dup(listening.fileno())
    monkeypatch.setattr(fd_store, "FIRST_FD", first)
    environ = environ_of(7, "1", "http")
    found = fd_store.stored_sockets(environ, 7)
    assert list(found) == ["http"]
    assert found["http"].getsockname() == listening.getsockname()
    assert environ == {"PATH": "/bin"}
    found["http"].close()
    listening.close()


def test_what_is_no_socket_is_none_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(fd_store, "FIRST_FD", file.fileno())
        assert fd_store.stored_sockets(environ_of(7, "1", "http"), 7) == {}


@pytest.mark.parametrize(
    "environ", [{}, environ_of(8, "1", "http"), environ_of(7, "", ""), environ_of(7, "-1", "x"), environ_of(7, "0", "")]
)
def test_nothing_is_taken_that_is_not_meant_for_us(environ: dict[str, str]) -> None:
    assert fd_store.stored_sockets(environ, 7) == {}
    assert not set(environ) & set(fd_store.VARIABLES)


def test_a_socket_is_of_use_where_it_listens_on_the_same_address(listening: socket.socket) -> None:
    host, port = listening.getsockname()
    assert fd_store.is_listening_on(listening, socket.AF_INET, (host, port))
    assert fd_store.is_listening_on(listening, socket.AF_INET, (host, 0))
    assert not fd_store.is_listening_on(listening, socket.AF_INET, (host, port + 1))
    assert not fd_store.is_listening_on(listening, socket.AF_INET, ("0.0.0.0", port))
    assert not fd_store.is_listening_on(listening, socket.AF_INET6, (host, port))
    with socket.socket() as unbound:
        assert not fd_store.is_listening_on(unbound, socket.AF_INET, ("0.0.0.0", 0))
    listening.close()


def test_what_is_given_up_listens_no_more_whoever_else_holds_it(listening: socket.socket) -> None:
    address = listening.getsockname()
    with listening.dup():
        fd_store.discard(listening)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        socket.create_server(address).close()


def test_the_manager_gets_the_descriptor_with_its_name(tmp_path: Path, listening: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        SystemdNotifier(str(tmp_path / "notify"), 0.0).store("http", listening.fileno())
        text, (fd,), _, _ = socket.recv_fds(manager, 100, 2)
    assert text == b"FDSTORE=1\nFDNAME=http"
    with socket.socket(fileno=fd) as stored:
        assert stored.getsockname() == listening.getsockname()
    listening.close()


def test_without_a_manager_nothing_is_stored(listening: socket.socket) -> None:
    SystemdNotifier("", 0.0).store("http", listening.fileno())
    SystemdNotifier("/nowhere/notify", 0.0).store("http", listening.fileno())
    listening.close()
