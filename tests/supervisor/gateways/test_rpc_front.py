"""The gRPC front process as the controller runs it: when it is wanted, when it can run, and what follows its exit."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild, SignalChild, Spawn, SpawnFailed
from mmsup.supervisor.config.server_options import read_config
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gateways import rpc_front
from mmsup.supervisor.gateways.gateway_process import GatewayContext
from mmsup.supervisor.gateways.rpc_front import RpcFront
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment

ADDRESSES = {"http": "127.0.0.1:1", "grpc": "127.0.0.1:2", "relay": "/run/relay.sock"}


@dataclass
class Recorder:
    """The keeper, the event log and the output of the server."""

    sent: list[Any] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)

    def send(self, message: object, descriptors: object = ()) -> None:
        self.sent.append(message)

    def record(self, name: str, text: str, **_: object) -> None:
        self.events.append((name, text))

    def append(self, worker: str, data: bytes) -> None:
        """The process prints nothing here."""

    def finish(self, worker: str) -> list[str]:
        return []

    def spawned(self) -> list[Spawn]:
        return [each for each in self.sent if isinstance(each, Spawn)]


def run(front: str, test: Callable[[RpcFront, Recorder], None], addresses: dict[str, str] = ADDRESSES) -> None:
    async def main() -> None:
        recorder: Any = Recorder()
        settings = Settings(("/models",), "/run", "/state", grpc_front=front)
        environment = LaunchEnvironment({}, "/scratch", "/run", 1)
        context = GatewayContext(settings, environment, recorder, recorder, recorder, addresses)
        made = RpcFront(context, 7)
        made.open()
        test(made, cast("Recorder", recorder))
        made.close()

    asyncio.run(main())


def test_it_is_started_if_it_was_asked_for_with_what_it_serves_on() -> None:
    def check(front: RpcFront, recorder: Recorder) -> None:
        (spawn,) = recorder.spawned()
        assert (spawn.token, spawn.listeners) == ("front.1.7", ("grpc",))
        assert json.loads(spawn.argv[3])[:3] == ["/run/relay.sock", "/run", 1]
        assert front.status() == {"front": "grpcio", "pid": None, "serves": False}

    run("grpcio", check)


def test_it_is_not_started_otherwise() -> None:
    def check(front: RpcFront, recorder: Recorder) -> None:
        assert recorder.sent == []
        assert front.status() == {"front": "own", "pid": None, "serves": True}

    run("own", check)


def test_it_takes_over_where_the_own_front_fails_and_says_so_once() -> None:
    def check(front: RpcFront, recorder: Recorder) -> None:
        for gateway in (0, 1):
            front.on_own_front_failed(gateway, "it is broken")
        assert len(recorder.spawned()) == 1
        ((name, text), *_) = recorder.events
        assert (name, text) == ("grpc_front_fallback", "it is broken: grpcio serves gRPC from now on")
        assert [each for each, _ in recorder.events].count("grpc_front_fallback") == 1

    run("own", check)


def test_without_the_library_the_failure_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_front, "LIBRARY", "mmsup_no_such_library")

    def check(front: RpcFront, recorder: Recorder) -> None:
        front.on_own_front_failed(0, "it is broken")
        assert not front.can_run
        assert recorder.spawned() == []
        assert "pip install 'mmsup[grpc]'" in recorder.events[0][1]

    run("own", check)


def test_a_server_without_grpc_has_no_front() -> None:
    def check(front: RpcFront, recorder: Recorder) -> None:
        assert not front.can_run
        assert recorder.spawned() == []

    run("grpcio", check, {"http": "127.0.0.1:1"})


def test_another_one_follows_its_exit_with_another_name_and_none_after_a_stop() -> None:
    def check(front: RpcFront, recorder: Recorder) -> None:
        front.on_message(1, 7, ChildExited("front.1.7", 5, 0, signal.SIGKILL), [])
        assert ForgetChild("front.1.7") in recorder.sent
        assert recorder.events[-1][0] == "grpc_front_exit"
        assert "SIGKILL" in recorder.events[-1][1]
        front.open()  # as its timer does
        assert [each.token for each in recorder.spawned()] == ["front.1.7", "front.2.7"]
        front.on_message(2, 7, SpawnFailed("front.2.7", "no memory"), [])
        assert "no memory" in recorder.events[-1][1]
        front.open()
        front.stop()
        assert recorder.sent[-1] == SignalChild("front.3.7", signal.SIGTERM, whole_session=True)
        front.on_message(3, 7, ChildExited("front.3.7", 5, 0, 0), [])
        front.open()
        assert len(recorder.spawned()) == 3

    run("grpcio", check)


def test_the_flag_is_an_error_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flags = {"repositories": (str(tmp_path),), "grpc_front": "grpcio"}
    assert read_config(flags, {}, 0).settings is not None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    found = read_config(flags, {}, 0)
    (error,) = found.errors
    assert (found.settings, error.place) == (None, "--grpc-front")
    assert "pip install 'mmsup[grpc]'" in error.text
