"""A whole brain in the test's own process: a keeper that starts `sleep`, workers and gateways played by the test.

Channels, pages, pipes, pidfds and exits are real; what the children say is up to the test.
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

from mmsup.ipc.memory.status_page import Activity, PageWriter, make_page
from mmsup.ipc.messages import gateway_control, handshake, keeper_control, worker_control
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import Closed, Seqpacket, close_all
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.controller import Brain
from mmsup.supervisor.instances.liveness import BEAT_S
from mmsup.supervisor.linux.cgroup import Group
from mmsup.supervisor.observability.console import Console

PATIENCE_S = 10.0
"""Fires only when something is broken."""
METADATA = Metadata("python", 0, (), ())

Script = Callable[["Child"], None]
"""What a worker does when it has been told what to become."""


class NoGroups:
    """A machine without control groups."""

    def make(self, life: str, cap_bytes: int | None) -> Group:
        return Group(())

    def group(self, life: str) -> Group:
        return Group(())

    def lives(self) -> list[str]:
        return []

    def leave(self) -> bool:
        return True

    def describe(self) -> str:
        return "none, this is a test"


@dataclass
class Child:
    """One child, seen from its own side."""

    spawn: keeper_control.Spawn
    process: subprocess.Popen[bytes]
    channel: Seqpacket
    page: PageWriter
    crash: int
    log: int
    kept: list[int]
    """The keeper's copies of the five descriptors."""
    heard: list[Any] = field(default_factory=list)  # messages of TO_WORKER or TO_GATEWAY
    exited: keeper_control.Exited | None = None
    beats: bool = False
    """Its loop turns."""

    @property
    def token(self) -> str:
        return self.spawn.token

    @property
    def life(self) -> tuple[int, int]:
        _, number, generation = self.token.split(".")
        return int(number), int(generation)

    def say(self, message: object) -> None:
        assert self.channel.send(encode(message))

    def serve(self) -> None:
        """Come up as a good worker does."""
        self.say(handshake.Hello("worker", handshake.WIRE_VERSION, *self.life))
        self.say(worker_control.Stage("loading"))
        self.page.enter(Activity.IDLE, time.monotonic_ns())
        self.beats = True
        self.say(worker_control.Ready(METADATA, 0.1))

    def of(self, kind: type[Any]) -> list[Any]:
        """What it has heard of one kind."""
        return [each for each in self.heard if isinstance(each, kind)]


def fail_to_load(child: Child) -> None:
    child.say(handshake.Hello("worker", handshake.WIRE_VERSION, *child.life))
    child.say(worker_control.LoadFailed("load_failed", "the artefact is broken"))
    child.process.kill()


class KeeperDouble:
    """Starts `sleep`s, tells of their ends, and remembers what was said."""

    def __init__(self) -> None:
        self.children: dict[str, Child] = {}
        self.deaths = asyncio.Event()
        """Set at each."""
        self.said: list[Any] = []  # messages of TO_KEEPER
        self.remembered = ""
        self.script: Script = Child.serve
        self.is_busy = False
        """Gateways have work that they do not finish by themselves."""
        self.brain: Brain | None = None
        self._loop = asyncio.get_running_loop()
        self._beat: asyncio.Handle = self._loop.call_soon(self._turn)

    def say(self, message: object, descriptors: Sequence[int] = ()) -> None:
        self.said.append(message)
        self._moved()
        match message:
            case keeper_control.Spawn():
                self._loop.call_soon(self._spawn, message)
            case keeper_control.Signal(token, number):
                if token in self.children and self.children[token].exited is None:
                    self.children[token].process.send_signal(number)
            case keeper_control.Remember(text):
                self.remembered = text
            case keeper_control.Forget(token):
                self._forget(token)
            case _:
                pass

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.said if isinstance(each, kind)]

    def child(self, token: str) -> Child:
        return self.children[token]

    def workers(self) -> list[Child]:
        """Those that live."""
        return [each for each in self.children.values() if each.token.startswith("worker") and each.exited is None]

    def introduce(self, child: Child) -> None:
        """Give a child to the brain, with duplicates of its descriptors."""
        if self.brain is not None:
            self.brain.told(
                keeper_control.Child(child.token, child.process.pid, child.spawn.note),
                [os.dup(each) for each in child.kept],
            )

    def _spawn(self, spawn: keeper_control.Spawn) -> None:
        if self.brain is None:
            return
        if spawn.cwd and not os.path.isdir(spawn.cwd):
            self.brain.told(keeper_control.SpawnFailed(spawn.token, "no such folder"), [])
            return
        process = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True, close_fds=True)
        near, far = Seqpacket.pair()
        page = make_page()
        crash_read, crash = os.pipe()
        log_read, log = os.pipe()
        kept = [os.pidfd_open(process.pid), near.detach(), page, crash_read, log_read]
        child = Child(spawn, process, far, PageWriter(page), crash, log, kept)
        self.children[spawn.token] = child
        self._loop.add_reader(far.fileno(), self._read, child)
        self._loop.add_reader(kept[0], self._reap, child)
        self.introduce(child)
        self._moved()

    def _read(self, child: Child) -> None:
        expected = worker_control.TO_WORKER if child.token.startswith("worker") else gateway_control.TO_GATEWAY
        while True:
            try:
                received = child.channel.receive()
            except Closed:
                self._loop.remove_reader(child.channel.fileno())
                return
            if received is None:
                return
            close_all(received[1])
            message = decode(received[0], expected)
            child.heard.append(message)
            self._moved()
            match message:
                case worker_control.Boot():
                    self.script(child)
                case worker_control.Stop():
                    child.process.terminate()
                case gateway_control.Configure():
                    child.page.enter(Activity.IDLE, 1 << 62)
                    child.say(handshake.Hello("gateway", handshake.WIRE_VERSION, message.gateway, message.generation))
                case gateway_control.Ping(number):
                    child.say(gateway_control.Pong(number))
                case gateway_control.Drain() if not self.is_busy:
                    child.say(gateway_control.Drained())
                case _:
                    pass

    def _moved(self) -> None:
        if self.brain is not None:
            self.brain.moved.set()

    def _reap(self, child: Child) -> None:
        self._loop.remove_reader(child.kept[0])
        code = child.process.wait()
        stopped = any(isinstance(each, worker_control.Stop) for each in child.heard) and code == -signal.SIGTERM
        status, number = (0, 0) if stopped else (max(code, 0), max(-code, 0))
        child.exited = keeper_control.Exited(child.token, child.process.pid, status, number)
        self.deaths.set()
        if self.brain is not None:
            self.brain.told(child.exited, [])

    def _forget(self, token: str) -> None:
        child = self.children.get(token)
        if child is not None and child.exited is not None:
            self._loop.remove_reader(child.channel.fileno())
            child.channel.close()
            close_all([*child.kept, child.crash, child.log])
            child.kept.clear()

    def _turn(self) -> None:
        """All loops come round."""
        for child in self.children.values():
            if child.beats:
                child.page.turn(time.monotonic_ns())
        self._beat = self._loop.call_later(BEAT_S, self._turn)

    def close(self) -> None:
        self._beat.cancel()
        self.brain = None
        for child in self.children.values():
            if child.kept:
                self._loop.remove_reader(child.kept[0])
                child.process.kill()
                child.process.wait()
                child.exited = keeper_control.Exited(child.token, child.process.pid, 0, 9)
                self._forget(child.token)


class House:
    """A keeper with a brain; `async with House(tmp_path, ...) as house`."""

    def __init__(self, home: Path, models: Sequence[str] = ("good",), **options: Any) -> None:  # of Settings
        self.home = home
        for name in models:
            add_model(home, name)
        (home / "run").mkdir(exist_ok=True)
        defaults: dict[str, Any] = {"exit_timeout_s": 5.0, "spare_gateway": False}
        self.settings = Settings(
            repositories=(str(home / "repo"),),
            runtime_dir=str(home / "run"),
            state_dir=str(home / "state"),
            **(defaults | options),
        )
        self.output = os.devnull
        """Where the brains say what operators read."""
        self.environ = {"PATH": os.defpath}
        """Of the server."""
        self.generation = 0
        self.keeper: KeeperDouble
        self.brain: Brain

    async def __aenter__(self) -> House:
        self.keeper = KeeperDouble()
        self._console = os.open(self.output, os.O_WRONLY | os.O_CREAT, 0o600)
        await self.new_brain()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.brain.close()
        self.keeper.close()
        os.close(self._console)

    async def new_brain(self, *, stopping: bool = False) -> None:
        """A brain, as the keeper starts one and introduces everybody to it."""
        self.generation += 1
        inventory = keeper_control.Inventory(
            keeper_pid=os.getpid(),
            generation=self.generation,
            settings=self.settings.to_json(),
            remembered=self.keeper.remembered,
            children=len([each for each in self.keeper.children.values() if each.kept]),
            addresses={"http": "127.0.0.1:1", "control": "x"},
            stopping=stopping,
        )
        console = Console("json", self._console)
        self.brain = Brain(inventory, self.keeper, self.environ, console, NoGroups())
        self.keeper.brain = self.brain
        await self.brain.start(None)
        for child in [each for each in self.keeper.children.values() if each.kept]:
            self.keeper.introduce(child)
            if child.exited is not None:
                self.brain.told(child.exited, [])

    async def kill_brain(self) -> None:
        """As SIGKILL does: nothing is said, all its descriptors are closed."""
        self.keeper.brain = None
        await self.brain.close()

    async def until(self, is_so: Callable[[], Any]) -> None:  # anything that is true or false
        """Wait for something to become so; on failure, what had happened."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not is_so():
                    self.brain.moved.clear()
                    await self.brain.moved.wait()
        except TimeoutError:
            told = "\n".join(json.dumps(each) for each in self.brain.books.journal.last())
            raise AssertionError(f"it never came; until then:\n{told}") from None

    def state(self, name: str) -> str:
        model = self.brain.fleet.model(name)
        return str(model.state()) if model is not None else "unknown"

    def events(self, name: str = "", model: str = "") -> list[dict[str, Any]]:  # JSON
        return [each for each in self.brain.books.journal.last(model=model) if not name or each["event"] == name]

    def gateway(self) -> Child:
        """The one that lives."""
        return next(each for each in self.keeper.children.values() if each.token.startswith("gate") and not each.exited)


def add_model(home: Path, name: str, version: str = "1", yaml: str = "") -> Path:
    """A model in the repository of a house: a Python class that nobody runs."""
    folder = home / "repo" / name / version
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text("class Model: ...\n")
    tensors = "inputs: [{name: x, datatype: FP32, shape: [1]}]\noutputs: [{name: y, datatype: FP32, shape: [1]}]\n"
    (folder.parent / "mmsup.yaml").write_text(tensors + yaml)
    return folder
