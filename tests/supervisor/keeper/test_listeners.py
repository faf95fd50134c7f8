from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmsup.ipc import paths
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.listeners import CannotListen, Listeners


def settings_of(folder: Path, **options: Any) -> Settings:  # fields of Settings
    plain = Settings(
        repositories=(), state_dir=str(folder), runtime_dir=str(folder), http_port=0, grpc_port=-1, metrics_port=-1
    )
    return replace(plain, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_every_listener_of_the_settings_is_there_under_its_name(folder: Path) -> None:
    unix = {name: str(folder / f"{name}.sock") for name in ("http_unix", "grpc_unix")}
    listeners = Listeners(settings_of(folder, grpc_port=0, metrics_port=0, **unix))
    try:
        assert list(listeners.addresses) == ["http", "grpc", "metrics", "http_unix", "grpc_unix", "control", "relay"]
        for name in ("http", "grpc", "metrics"):
            host, _, port = listeners.addresses[name].rpartition(":")
            socket.create_connection((host, int(port))).close()
        for name in ("http_unix", "grpc_unix", "control", "relay"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listeners.addresses[name])
        assert len({listeners.fileno(name) for name in listeners.addresses}) == 7
        with pytest.raises(KeyError):
            listeners.fileno("other")
    finally:
        listeners.close()
    assert os.listdir(folder) == []


def test_unix_sockets_are_for_their_owner_alone(folder: Path) -> None:
    before = os.umask(0)
    listeners = Listeners(settings_of(folder, http_unix=str(folder / "http.sock")))
    os.umask(before)
    for name in ("control", "http_unix"):
        assert stat.S_IMODE(os.stat(listeners.addresses[name]).st_mode) == 0o600
    assert listeners.addresses["control"] == paths.control_socket(str(folder))
    listeners.close()


def test_without_a_port_grpc_is_not_served(folder: Path) -> None:
    listeners = Listeners(settings_of(folder, grpc_port=-1))
    assert list(listeners.addresses) == ["http", "control"]
    listeners.close()


def test_another_listener_may_have_the_default_port_for_grpc(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listeners = Listeners(settings_of(folder, grpc_port=port, http_port=port))
    try:
        assert listeners.addresses["http"].endswith(f":{port}")
        assert "grpc" not in listeners.addresses
        assert len(listeners.warnings) == 1
    finally:
        listeners.close()


def test_a_default_port_for_grpc_that_is_taken_is_a_warning_and_one_that_was_asked_for_an_error(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_of(folder, grpc_port=taken.getsockname()[1])
        listeners = Listeners(settings)
        assert list(listeners.addresses) == ["http", "control"]
        with pytest.raises(KeyError):
            listeners.fileno("grpc")
        (warning,) = listeners.warnings
        assert "another program uses it" in warning
        assert "--grpc-port" in warning
        listeners.close()
        with pytest.raises(CannotListen, match="grpc: cannot listen on"):
            Listeners(replace(settings, grpc_is_wanted=True))


def test_an_ipv6_address_is_shown_in_brackets(folder: Path) -> None:
    listeners = Listeners(settings_of(folder, host="::1"))
    assert listeners.addresses["http"].startswith("[::1]:")
    listeners.close()


def test_a_port_in_use_names_the_listener_and_the_address_and_leaves_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"metrics: cannot listen on .*:{port}: another program uses it"):
            Listeners(settings_of(folder, metrics_port=port))
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("host", "why"), [("203.0.113.7", "Cannot assign requested address"), ("no-such-host.invalid", "")]
)
def test_an_address_that_is_not_ours_is_said(folder: Path, host: str, why: str) -> None:
    with pytest.raises(CannotListen, match=f"http: cannot listen on {host}:0: {why}"):
        Listeners(settings_of(folder, host=host))


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(folder: Path) -> None:
    path = folder / "http.sock"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
        former.listen()
        with pytest.raises(CannotListen, match=r"http_unix: cannot listen on .*: another program uses it"):
            Listeners(settings_of(folder, http_unix=str(path)))
    assert path.exists()
    listeners = Listeners(settings_of(folder, http_unix=str(path)))
    listeners.close()
    assert not path.exists()


def test_a_file_or_a_link_in_the_way_is_not_removed(folder: Path) -> None:
    (folder / "file").write_text("precious")
    (folder / "link").symlink_to(folder / "file")
    for name in ("file", "link"):
        with pytest.raises(CannotListen):
            Listeners(settings_of(folder, http_unix=str(folder / name)))
    assert (folder / "file").read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_said(folder: Path) -> None:
    with pytest.raises(CannotListen, match="too long for a socket: 107 bytes at most"):
        Listeners(settings_of(folder, http_unix=str(folder / ("x" * 107))))


def test_a_folder_that_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(CannotListen, match="No such file or directory"):
        Listeners(settings_of(folder, http_unix="/nowhere/http.sock"))


def test_a_former_keepers_listener_goes_on_with_those_who_wait_in_it(folder: Path) -> None:
    former = Listeners(settings_of(folder, metrics_port=0))
    address = former.addresses["http"]
    kept = {name: socket.socket(fileno=os.dup(former.fileno(name))) for name in ("http", "metrics")}
    former.close()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as waiting:
        listeners = Listeners(settings_of(folder, http_port=int(port), metrics_port=0), kept)
        assert listeners.addresses["http"] == address
        assert listeners.addresses["metrics"] == former.addresses["metrics"]
        with socket.socket(fileno=os.dup(listeners.fileno("http"))) as again:
            served, client = again.accept()
            served.close()
        assert client == waiting.getsockname()
    listeners.close()


def test_a_former_keepers_listener_that_is_not_wanted_frees_its_address_though_others_hold_it(folder: Path) -> None:
    former = Listeners(settings_of(folder, metrics_port=0))
    ports = {name: int(former.addresses[name].rpartition(":")[2]) for name in ("http", "metrics")}
    kept = {name: socket.socket(fileno=os.dup(former.fileno(name))) for name in ("http", "metrics")}
    swapped = settings_of(folder, http_port=ports["metrics"], metrics_port=ports["http"])
    os.unlink(former.addresses["control"])
    listeners = Listeners(swapped, kept)
    assert listeners.addresses["http"] == former.addresses["metrics"]
    assert listeners.addresses["metrics"] == former.addresses["http"]
    listeners.close()
    former.close()


def former(folder: Path) -> tuple[Listeners, dict[str, socket.socket]]:
    """Of a keeper with a socket file for HTTP, and what the manager holds of them."""
    made = Listeners(settings_of(folder, http_unix=str(folder / "http.sock")))
    return made, {name: socket.socket(fileno=os.dup(fd)) for name, fd in made.descriptors.items()}


def test_a_former_keepers_socket_file_goes_on_with_those_who_wait_behind_it(folder: Path) -> None:
    made, kept = former(folder)
    was = {name: os.stat(made.addresses[name]).st_ino for name in ("http_unix", "control")}
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(made.addresses["http_unix"])
        waiting.sendall(b"first")
        listeners = Listeners(settings_of(folder, http_unix=str(folder / "http.sock")), kept)
        assert {name: os.stat(listeners.addresses[name]).st_ino for name in was} == was
        with socket.socket(fileno=os.dup(listeners.fileno("http_unix"))) as again:
            served, _ = again.accept()
            assert served.recv(10) == b"first"
            served.close()
    listeners.close()
    assert os.listdir(folder) == []
    made.close()


def test_a_former_keepers_socket_is_of_no_use_where_its_file_is_gone_or_elsewhere(folder: Path) -> None:
    made, kept = former(folder)
    os.unlink(made.addresses["control"])
    listeners = Listeners(settings_of(folder, http_unix=str(folder / "other.sock")), kept)
    for name in ("control", "http_unix"):
        with socket.socket(socket.AF_UNIX) as client, socket.socket(fileno=os.dup(listeners.fileno(name))) as again:
            client.connect(listeners.addresses[name])
            again.accept()[0].close()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(folder / "http.sock"))
    listeners.close()
    made.close()


@pytest.mark.slow
def test_a_file_that_another_program_has_bound_over_is_not_taken_for_a_former_keepers(folder: Path) -> None:
    made, kept = former(folder)
    path = made.addresses["http_unix"]
    os.unlink(path)
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(CannotListen, match=r"http_unix: cannot listen on .*: another program uses it"):
            Listeners(settings_of(folder, http_unix=path), kept)
        other.kill()
    made.close()
