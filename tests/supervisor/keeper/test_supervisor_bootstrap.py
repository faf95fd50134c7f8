"""What a keeper holds: taken in this order, let go in the other, on each way out."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsup.ipc import paths
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import bootstrap_premises
from mmsup.supervisor.keeper.directories import AlreadyRunning, ServerDirectories
from mmsup.supervisor.keeper.listeners import CannotListen
from mmsup.supervisor.keeper.reexec import KeeperState
from mmsup.supervisor.linux import cgroup_backend


class Groups:
    """Control groups that only tell who comes and goes."""

    def describe(self) -> str:
        return "none, this is a test"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of the groups, in order."""
    told = list[str]()

    def take(name: str) -> Groups:
        told.append(name)
        return Groups()

    monkeypatch.setattr(cgroup_backend, "set_up", lambda _: take("settled"))
    monkeypatch.setattr(cgroup_backend, "backend", lambda _: take("found"))
    monkeypatch.setattr(cgroup_backend, "tear_down", lambda _: told.append("left"))
    return told


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def settings_of(folder: Path, port: int = 0) -> Settings:
    here = str(folder)
    return Settings(
        repositories=(), state_dir=here, runtime_dir=here, http_port=port, metrics_port=-1, log_format="json"
    )


def worker_socket(folder: Path) -> Path:
    """As a worker of a former life leaves it."""
    path = Path(paths.worker_socket(str(folder), 1, 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


def test_what_a_former_life_left_is_ended_before_anybody_can_connect(
    tmp_path: Path, told: list[str], held: contextlib.ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    left = worker_socket(tmp_path)
    made = bootstrap_premises.acquire(settings_of(tmp_path), held)
    assert told == ["settled"]
    assert not left.exists()
    assert "control" in made.listeners.addresses
    assert '"event": "keeper_start"' in capfd.readouterr().err
    worker_socket(tmp_path)
    held.close()
    assert told == ["settled", "left"]
    assert os.listdir(tmp_path) == ["lock"]


def test_a_second_keeper_is_refused_before_it_touches_anything(
    tmp_path: Path, told: list[str], held: contextlib.ExitStack
) -> None:
    bootstrap_premises.acquire(settings_of(tmp_path), held)
    left = worker_socket(tmp_path)
    with contextlib.ExitStack() as others:
        with pytest.raises(AlreadyRunning):
            bootstrap_premises.acquire(settings_of(tmp_path), others)
        others.close()
    assert told == ["settled"]
    assert left.exists()


def test_what_could_not_be_entered_is_free_for_the_next(
    tmp_path: Path, told: list[str], held: contextlib.ExitStack
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = contextlib.ExitStack()
        with pytest.raises(CannotListen):
            bootstrap_premises.acquire(settings_of(tmp_path, taken.getsockname()[1]), first)
        first.close()
    assert told == ["settled", "left"]
    bootstrap_premises.acquire(settings_of(tmp_path), held)


def test_the_next_program_holds_the_same_and_sweeps_nothing_of_what_lives(
    tmp_path: Path, told: list[str], held: contextlib.ExitStack, capfd: pytest.CaptureFixture[str]
) -> None:
    locks = ServerDirectories(str(tmp_path), str(tmp_path)).locks
    alive, file = worker_socket(tmp_path), tmp_path / "http.sock"
    file.touch()
    listener = socket.create_server(("127.0.0.1", 0)).detach()
    estate = estate_of(locks, listener, str(file))
    made = bootstrap_premises.adopt(estate, settings_of(tmp_path), held)
    assert told == ["found"]
    assert alive.exists()
    assert made.listeners.descriptors == {"http": listener}
    assert made.listeners.addresses == estate.addresses
    assert (made.notifier.address, made.notifier.watchdog_s) == ("/run/notify", 5.0)
    assert '"life": 3' in capfd.readouterr().err
    with pytest.raises(AlreadyRunning):
        bootstrap_premises.acquire(settings_of(tmp_path), contextlib.ExitStack())
    held.close()
    assert told == ["found", "left"]
    assert not alive.exists()
    assert not file.exists()
    bootstrap_premises.acquire(settings_of(tmp_path), held)


def estate_of(locks: tuple[int, ...], listener: int, file: str) -> KeeperState:
    """As the program before writes it, without children."""
    return KeeperState(
        keeper_generation=2,
        settings="",
        controller_generation=1,
        checkpoint="",
        locks=locks,
        listeners={"http": listener},
        addresses={"http": "127.0.0.1:1", "http_unix": file},
        socket_paths=(file,),
        lifeline=-1,
        lifeline_writer=-1,
        counter_tables=(),
        notify_address="/run/notify",
        watchdog_s=5.0,
        children=(),
        dying_groups=(),
    )
