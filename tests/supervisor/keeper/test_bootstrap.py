"""Resources of a keeper: acquired in order, released in reverse, also when the start fails."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import state_of
from mmsup.ipc import paths
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import bootstrap
from mmsup.supervisor.keeper.directories import AlreadyRunning, ServerDirectories
from mmsup.supervisor.keeper.listeners import CannotListen
from mmsup.supervisor.linux import cgroup_backend


class Groups:
    """Stands for the control groups."""

    description = "none, this is a test"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done with the control groups, in order."""
    calls = list[str]()

    def record(name: str) -> Groups:
        calls.append(name)
        return Groups()

    monkeypatch.setattr(cgroup_backend, "set_up", lambda _: record("set up"))
    monkeypatch.setattr(cgroup_backend, "backend", lambda _: record("found"))
    monkeypatch.setattr(cgroup_backend, "tear_down", lambda _: calls.append("torn down"))
    return calls


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def settings_of(folder: Path, port: int = 0) -> Settings:
    here = str(folder)
    return Settings(
        repositories=(),
        state_dir=here,
        runtime_dir=here,
        http_port=port,
        grpc_port=-1,
        metrics_port=-1,
        log_format="json",
    )


def worker_socket(folder: Path) -> Path:
    """A socket as a worker of a previous server leaves it behind."""
    path = Path(paths.worker_socket(str(folder), 1, 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


def test_leftovers_of_a_previous_server_are_removed_before_clients_can_connect(
    tmp_path: Path, calls: list[str], held: contextlib.ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    left = worker_socket(tmp_path)
    made = bootstrap.acquire(settings_of(tmp_path), held)
    assert calls == ["set up"]
    assert not left.exists()
    assert "control" in made.listeners.addresses
    assert '"event": "keeper_start"' in capfd.readouterr().err
    worker_socket(tmp_path)
    held.close()
    assert calls == ["set up", "torn down"]
    assert sorted(os.listdir(tmp_path)) == ["lock", "scratch"]


def test_a_second_keeper_is_refused_before_it_touches_anything(
    tmp_path: Path, calls: list[str], held: contextlib.ExitStack
) -> None:
    bootstrap.acquire(settings_of(tmp_path), held)
    left = worker_socket(tmp_path)
    with contextlib.ExitStack() as others:
        with pytest.raises(AlreadyRunning):
            bootstrap.acquire(settings_of(tmp_path), others)
        others.close()
    assert calls == ["set up"]
    assert left.exists()


def test_a_start_that_fails_releases_everything(tmp_path: Path, calls: list[str], held: contextlib.ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = contextlib.ExitStack()
        with pytest.raises(CannotListen):
            bootstrap.acquire(settings_of(tmp_path, taken.getsockname()[1]), first)
        first.close()
    assert calls == ["set up", "torn down"]
    bootstrap.acquire(settings_of(tmp_path), held)


def test_the_next_program_has_the_same_resources_and_removes_no_socket_of_a_living_worker(
    tmp_path: Path, calls: list[str], held: contextlib.ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    locks = tuple(ServerDirectories(str(tmp_path), str(tmp_path)).locks)
    alive, file = worker_socket(tmp_path), tmp_path / "http.sock"
    file.touch()
    listener = socket.create_server(("127.0.0.1", 0)).detach()
    state = state_of(
        keeper_generation=2,
        locks=locks,
        listeners={"http": listener},
        addresses={"http": "127.0.0.1:1", "http_unix": str(file)},
        socket_paths=(str(file),),
        notify_address="/run/notify",
        watchdog_s=5.0,
    )
    made = bootstrap.adopt(state, settings_of(tmp_path), held)
    assert calls == ["found"]
    assert alive.exists()
    assert made.listeners.descriptors == {"http": listener}
    assert made.listeners.addresses == state.addresses
    assert (made.notifier.address, made.notifier.watchdog_s) == ("/run/notify", 5.0)
    assert '"life": 3' in capfd.readouterr().err
    with pytest.raises(AlreadyRunning):
        bootstrap.acquire(settings_of(tmp_path), contextlib.ExitStack())
    held.close()
    assert calls == ["found", "torn down"]
    assert not alive.exists()
    assert not file.exists()
    bootstrap.acquire(settings_of(tmp_path), held)
