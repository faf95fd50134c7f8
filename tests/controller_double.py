"""A whole controller in the test's own process: a keeper that starts `sleep`, workers and gateways played by the test.

Channels, status pages, pipes, pidfds and exits are real; what the children send is up to the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter, make_status_page
from mmsup.ipc.messages.gateway_control import TO_GATEWAY, ConfigureGateway, DrainGateway, GatewayDrained, Ping, Pong
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.keeper_control import (
    ChildDescriptors,
    ChildExited,
    ForgetChild,
    KeeperInventory,
    SaveCheckpoint,
    SignalChild,
    Spawn,
    SpawnFailed,
)
from mmsup.ipc.messages.worker_control import (
    TO_WORKER,
    ConfigureWorker,
    LoadFailed,
    LoadProgress,
    StopWorker,
    WorkerReady,
)
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.children import ChildRouter
from mmsup.supervisor.controller.controller import Controller
from mmsup.supervisor.controller.recovery import Checkpoint, read_checkpoint
from mmsup.supervisor.instances.liveness import HEARTBEAT_S
from mmsup.supervisor.keeper.controller_restart import CheckpointStore
from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.linux.idle_group import IdleGroup
from mmsup.supervisor.observability.console import Console

PATIENCE_S = 10.0
"""Fires only when something is broken."""
METADATA = Metadata("python", 0, (), ())

Script = Callable[["Child"], None]
"""What a worker does when it has been configured."""


class NoGroups:
    """A machine without control groups."""

    description = "none, this is a test"
    idle: IdleGroup | None = None
    has_device_caps = False

    def create(self, life: str, cap_bytes: int | None) -> Cgroup:
        return Cgroup(())

    def group(self, life: str) -> Cgroup:
        return Cgroup(())

    def names(self) -> list[str]:
        return []

    def remove_all(self) -> bool:
        return True


@dataclass
class Child:
    """One child, seen from its own side."""

    spawn: Spawn
    process: subprocess.Popen[bytes]
    channel: ControlChannel
    page: StatusPageWriter
    crash: int
    log: int
    keeper_fds: list[int]
    """The keeper's copies of the five descriptors."""
    received: list[Any] = field(default_factory=list)  # messages of TO_WORKER or TO_GATEWAY
    exited: ChildExited | None = None
    beats: bool = False
    """Its loop turns."""

    @property
    def token(self) -> str:
        return self.spawn.token

    @property
    def life(self) -> tuple[int, int]:
        _, number, generation = self.token.split(".")
        return int(number), int(generation)

    def send(self, message: object) -> None:
        assert self.channel.send(encode(message))

    def serve(self) -> None:
        """Come up as a good worker does."""
        self.send(Hello("worker", WIRE_VERSION, *self.life))
        self.send(LoadProgress("loading"))
        self.page.set_activity(Activity.IDLE, time.monotonic_ns())
        self.beats = True
        self.send(WorkerReady(METADATA, 0.1))

    def received_of(self, kind: type[Any]) -> list[Any]:
        """What it has received of one kind."""
        return [each for each in self.received if isinstance(each, kind)]


def fail_to_load(child: Child) -> None:
    child.send(Hello("worker", WIRE_VERSION, *child.life))
    child.send(LoadFailed("load_failed", "the artefact is broken"))
    child.process.kill()


class KeeperDouble:
    """Starts `sleep`s, reports their exits, and holds the checkpoint."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.deaths = asyncio.Event()
        """Set at each exit."""
        self.sent: list[Any] = []  # messages of TO_KEEPER
        self.checkpoint: dict[str, str] = {}
        self.script: Script = Child.serve
        self.is_busy = False
        """Gateways have work that they do not finish by themselves."""
        self.controller: Controller | None = None
        self.router: ChildRouter | None = None
        self._loop = asyncio.get_running_loop()
        self._beat: asyncio.Handle = self._loop.call_soon(self._turn)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        self.sent.append(message)
        self._moved()
        match message:
            case Spawn():
                self._loop.call_soon(self._spawn, message)
            case SignalChild(token, number):
                if token in self.children and self.children[token].exited is None:
                    self.children[token].process.send_signal(number)
            case SaveCheckpoint(key, text):
                self.checkpoint[key] = text
                if not text:
                    del self.checkpoint[key]
            case ForgetChild(token):
                self._forget(token)
            case _:
                pass

    def sent_of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.sent if isinstance(each, kind)]

    def child(self, token: str) -> Child:
        return self.children[token]

    def workers(self) -> list[Child]:
        """Those that live."""
        return [each for each in self.children.values() if each.token.startswith("worker") and each.exited is None]

    def hand_over(self, child: Child) -> None:
        """Hand a child over to the controller, with duplicates of its descriptors."""
        if self.router is not None:
            self.router.on_message(
                ChildDescriptors(child.token, child.process.pid, child.spawn.note),
                [os.dup(each) for each in child.keeper_fds],
            )

    def _spawn(self, spawn: Spawn) -> None:
        if self.router is None:
            return
        if spawn.cwd and not os.path.isdir(spawn.cwd):
            self.router.on_message(SpawnFailed(spawn.token, "no such folder"), [])
            return
        process = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True, close_fds=True)
        near, far = ControlChannel.pair()
        page = make_status_page()
        crash_read, crash = os.pipe()
        log_read, log = os.pipe()
        kept = [os.pidfd_open(process.pid), near.detach(), page, crash_read, log_read]
        child = Child(spawn, process, far, StatusPageWriter(page), crash, log, kept)
        self.children[spawn.token] = child
        self._loop.add_reader(far.fileno(), self._read, child)
        self._loop.add_reader(kept[0], self._reap, child)
        self.hand_over(child)
        self._moved()

    def _read(self, child: Child) -> None:
        expected = TO_WORKER if child.token.startswith("worker") else TO_GATEWAY
        while True:
            try:
                received = child.channel.receive()
            except ChannelClosed:
                self._loop.remove_reader(child.channel.fileno())
                return
            if received is None:
                return
            close_fds(received[1])
            message = decode(received[0], expected)
            child.received.append(message)
            self._moved()
            match message:
                case ConfigureWorker():
                    self.script(child)
                case StopWorker():
                    child.process.terminate()
                case ConfigureGateway():
                    child.page.set_activity(Activity.IDLE, 1 << 62)
                    child.send(Hello("gateway", WIRE_VERSION, message.seat, message.generation))
                case Ping(number):
                    child.send(Pong(number))
                case DrainGateway() if not self.is_busy:
                    child.send(GatewayDrained())
                case _:
                    pass

    def _moved(self) -> None:
        if self.controller is not None:
            self.controller.context.change_signal.set()

    def _reap(self, child: Child) -> None:
        self._loop.remove_reader(child.keeper_fds[0])
        code = child.process.wait()
        stopped = any(isinstance(each, StopWorker) for each in child.received) and code == -signal.SIGTERM
        status, number = (0, 0) if stopped else (max(code, 0), max(-code, 0))
        child.exited = ChildExited(child.token, child.process.pid, status, number)
        self.deaths.set()
        if self.router is not None:
            self.router.on_message(child.exited, [])

    def _forget(self, token: str) -> None:
        child = self.children.get(token)
        if child is not None and child.exited is not None:
            self._loop.remove_reader(child.channel.fileno())
            child.channel.close()
            close_fds([*child.keeper_fds, child.crash, child.log])
            child.keeper_fds.clear()

    def _turn(self) -> None:
        """Every child has a heartbeat."""
        for child in self.children.values():
            if child.beats:
                child.page.heartbeat(time.monotonic_ns())
        self._beat = self._loop.call_later(HEARTBEAT_S, self._turn)

    def close(self) -> None:
        self._beat.cancel()
        self.controller = self.router = None
        for child in self.children.values():
            if child.keeper_fds:
                self._loop.remove_reader(child.keeper_fds[0])
                child.process.kill()
                child.process.wait()
                child.exited = ChildExited(child.token, child.process.pid, 0, 9)
                self._forget(child.token)


class ControllerHarness:
    """A keeper with a controller; `async with ControllerHarness(tmp_path, ...) as harness`."""

    def __init__(self, home: Path, models: Sequence[str] = ("good",), **options: Any) -> None:  # of Settings
        self.home = home
        for name in models:
            add_model(home, name)
        (home / "run").mkdir(exist_ok=True)
        defaults: dict[str, Any] = {"exit_timeout_s": 5.0, "spare_gateway": False, "zygotes": "none"}
        self.settings = Settings(
            repositories=(str(home / "repo"),),
            runtime_dir=str(home / "run"),
            state_dir=str(home / "state"),
            **(defaults | options),
        )
        self.output = os.devnull
        """Where the controllers log."""
        self.environ = {"PATH": os.defpath}
        """Of the server."""
        self.generation = 0
        self.keeper: KeeperDouble
        self.controller: Controller

    async def __aenter__(self) -> ControllerHarness:
        self.keeper = KeeperDouble()
        self._console = os.open(self.output, os.O_WRONLY | os.O_CREAT, 0o600)
        await self.start_controller()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.controller.close()
        self.keeper.close()
        os.close(self._console)

    async def start_controller(self, *, stopping: bool = False) -> None:
        """A controller, as the keeper starts one and hands all children over to it."""
        self.generation += 1
        parts = CheckpointStore(self.keeper.checkpoint).parts()
        inventory = KeeperInventory(
            keeper_pid=os.getpid(),
            generation=self.generation,
            settings=self.settings.to_json(),
            checkpoint_parts=len(parts),
            children=len([each for each in self.keeper.children.values() if each.keeper_fds]),
            addresses={"http": "127.0.0.1:1", "control": "x"},
            stopping=stopping,
        )
        console = Console(LogSettings(format="json"), self._console)
        router = ChildRouter()
        for message in (inventory, *parts):
            router.on_message(message, [])
        received = await router.receive_inventory()
        self.controller = Controller(*received, self.keeper, self.environ, console, NoGroups())
        self.keeper.controller, self.keeper.router = self.controller, router
        await self.controller.start(router, None)
        for child in [each for each in self.keeper.children.values() if each.keeper_fds]:
            self.keeper.hand_over(child)
            if child.exited is not None:
                self.from_keeper(child.exited)

    def from_keeper(self, message: object) -> None:
        """The keeper sends this."""
        assert self.keeper.router is not None
        self.keeper.router.on_message(message, [])

    async def kill_controller(self) -> None:
        """As SIGKILL does: nothing is sent, all its descriptors are closed."""
        self.keeper.controller = self.keeper.router = None
        await self.controller.close()

    async def until(self, is_so: Callable[[], Any]) -> None:  # anything that is true or false
        """Wait for a condition; on failure, the events until then."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not is_so():
                    self.controller.context.change_signal.clear()
                    await self.controller.context.change_signal.wait()
        except TimeoutError:
            events = "\n".join(json.dumps(each) for each in self.controller.context.state_dir.event_log.last())
            raise AssertionError(f"it never came; until then:\n{events}") from None

    def saved(self) -> Checkpoint:
        """What the next controller would find."""
        found = read_checkpoint(self.keeper.checkpoint)
        assert found is not None
        return found

    def state(self, name: str) -> str:
        model = self.controller.models.model_set.model(name)
        return str(model.state()) if model is not None else "unknown"

    def events(self, name: str = "", model: str = "") -> list[dict[str, Any]]:  # JSON
        return [
            each
            for each in self.controller.context.state_dir.event_log.last(model=model)
            if not name or each["event"] == name
        ]

    def gateway(self) -> Child:
        """The one that lives."""
        return next(each for each in self.keeper.children.values() if each.token.startswith("gate") and not each.exited)


def add_model(home: Path, name: str, version: str = "1", yaml: str = "") -> Path:
    """A model in the repository of a harness: a Python class that no process runs."""
    folder = home / "repo" / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text("class Model: ...\n")
    tensors = "inputs: [{name: x, datatype: FP32, shape: [1]}]\noutputs: [{name: y, datatype: FP32, shape: [1]}]\n"
    (folder.parent / "mmsup.yaml").write_text(tensors + yaml)
    return folder
