"""A real keeper whose controller is a relay: it passes messages between the test and the keeper."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mmsup.ipc.messages.keeper_control import (
    FROM_KEEPER,
    ChildDescriptors,
    ChildExited,
    ForgetChild,
    KeeperInventory,
    ShutdownFinished,
    Spawn,
)
from mmsup.ipc.transport.control_channel import ControlChannel, close_fds
from mmsup.ipc.transport.dataclass_codec import from_json, to_json
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.reexec import KeeperState

DEADLINE_S = 20.0
RELAY = str(Path(__file__).with_name("relay_controller.py"))
LAUNCHER = """
import sys
from mmsup.supervisor.keeper import controller_process, controller_restart, keeper
from mmsup.supervisor.keeper.__main__ import main
controller_process.HEARTBEAT_TIMEOUT_S = controller_process.FIRST_HEARTBEAT_TIMEOUT_S = {heartbeat_s}
keeper.STOP_MARGIN_S = {margin_s}
controller_restart.STEP_DOWN_LIMIT_S = {leave_s}
sys.exit(main(sys.argv[2:], [sys.executable, {relay!r}, sys.argv[1]]))
"""
SLEEPER = ("/bin/sh", "-c", "exec sleep 1000")
M = TypeVar("M")


def wait_readable(fd: int, what: str) -> None:
    """Wait until the descriptor is readable (a pidfd: until its process has exited)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), f"no {what} within {DEADLINE_S} s"


def wait_until(condition: Any, what: str) -> None:  # a callable without arguments
    """Poll /proc, which sends no events."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        select.select([], [], [], 0.005)


def is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


class ChildHandle:
    """A child as the controller has it: pid and five descriptors."""

    def __init__(self, message: ChildDescriptors, descriptors: list[int]) -> None:
        self.message = message
        self.token = message.token
        self.pid = message.pid
        self.descriptors = descriptors
        self.pidfd, self.control, self.page, self.crash, self.log = descriptors

    def output(self) -> bytes:
        """What it prints next, at most 64 KiB."""
        wait_readable(self.log, "output")
        return os.read(self.log, 65536)

    def close(self) -> None:
        close_fds(self.descriptors)


class RelayedController:
    """One controller process."""

    def __init__(self, sock: socket.socket) -> None:
        self._line = ControlChannel(sock)
        self._children: list[ChildHandle] = []
        hello = self._receive()[0].decode().split()
        self.pid = int(hello[0])
        self.names = hello[1:]

    def send(self, message: object) -> None:
        assert self._line.send(to_json(message))

    def send_bytes(self, data: bytes) -> None:
        assert self._line.send(data)

    def receive(self, kind: type[M]) -> M:
        """The next message, which must be of this type."""
        data, descriptors = self._receive()
        message = from_json(data, FROM_KEEPER)
        if isinstance(message, ChildDescriptors):
            self._children.append(ChildHandle(message, descriptors))
        assert isinstance(message, kind), f"{kind.__name__} expected, {message} came"
        return message

    def child(self) -> ChildHandle:
        self.receive(ChildDescriptors)
        return self._children[-1]

    def spawn(self, token: str, *argv: str, **fields: Any) -> ChildHandle:  # fields of Spawn
        self.send(spawn_of(token, *argv, **fields))
        return self.child()

    def leave(self) -> None:
        """Let it exit; the test keeps the descriptors of its children."""
        self._line.close()

    def close(self) -> None:
        self.leave()
        for child in self._children:
            child.close()

    def _receive(self) -> tuple[bytes, list[int]]:
        wait_readable(self._line.fileno(), "message")
        got = self._line.receive()
        assert got is not None
        return got


def spawn_of(token: str, *argv: str, **fields: Any) -> Spawn:  # fields of Spawn
    plain = Spawn(
        token=token,
        argv=argv or SLEEPER,
        env={"PATH": "/usr/bin:/bin"},
        cwd="/",
        procs_files=(),
        listeners=(),
        counter_tables=False,
        oom_score_adj=0,
        note=f"note of {token}",
    )
    return replace(plain, **fields)


class KeeperRig:
    """A keeper process, and the listener to which its controllers connect."""

    def __init__(self, folder: Path, **options: Any) -> None:  # fields of Settings; environ, keep, close; constants
        self.environ: Mapping[str, str] = options.pop("environ", {})
        self._keep: list[int] = options.pop("keep", [])
        closing = f"import os; os.close({options.pop('close')})" if "close" in options else ""
        self._launcher = closing + LAUNCHER.format(
            relay=RELAY,
            heartbeat_s=options.pop("heartbeat_s", 10.0),
            margin_s=options.pop("margin_s", 10.0),
            leave_s=options.pop("leave_s", 10.0),
        )
        self.settings = Settings(
            **{
                "repositories": (),
                "runtime_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "http_port": 0,
                "grpc_port": -1,
                "metrics_port": -1,
                "log_format": "json",
                **options,
            }
        )
        self.stderr = folder / "stderr"
        self._path = str(folder / "test.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self._path)
        self._listener.listen(8)
        self._controllers: list[RelayedController] = []
        self.process = self.launch()

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self) -> subprocess.Popen[bytes]:
        """Start a keeper with these settings."""
        settings = os.memfd_create("settings", 0)
        os.write(settings, self.settings.to_json().encode())
        os.lseek(settings, 0, os.SEEK_SET)
        argv = [sys.executable, "-c", self._launcher, self._path, f"settings={settings}"]
        try:
            with self.stderr.open("ab") as stderr:
                return subprocess.Popen(
                    argv,
                    pass_fds=[settings, *self._keep],
                    stderr=stderr,
                    env={**os.environ, **self.environ},
                    stdin=subprocess.DEVNULL,
                )
        finally:
            os.close(settings)

    def controller(self) -> RelayedController:
        """The next controller that connects."""
        wait_readable(self._listener.fileno(), f"controller; the keeper printed: {self.stderr.read_text()}")
        controller = RelayedController(self._listener.accept()[0])
        self._controllers.append(controller)
        return controller

    def ready_controller(self) -> RelayedController:
        controller = self.controller()
        controller.receive(KeeperInventory)
        return controller

    def finish(self, controller: RelayedController, code: int = 0) -> None:
        controller.send(ShutdownFinished(code))
        assert self.process.wait(DEADLINE_S) == code, self.stderr.read_text()

    def close(self) -> None:
        """Stop the keeper, whatever the test has done."""
        for _ in range(int(DEADLINE_S / 0.1)):
            self.process.send_signal(signal.SIGINT)  # two at once would be one
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                break
        else:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        for controller in self._controllers:
            controller.close()
        self._listener.close()


@contextlib.contextmanager
def keeper_rig(folder: Path, **options: Any) -> Iterator[KeeperRig]:  # as KeeperRig
    rig = KeeperRig(folder, **options)
    try:
        yield rig
    finally:
        rig.close()


def forget(controller: RelayedController, token: str) -> ChildExited:
    """Receive a child's exit and let the keeper forget the child."""
    ended = controller.receive(ChildExited)
    assert ended.token == token
    controller.send(ForgetChild(token))
    return ended


def state_of(**fields: object) -> KeeperState:
    """The state of a keeper that holds next to nothing."""
    plain = {
        "keeper_generation": 1,
        "settings": "{}",
        "controller_generation": 1,
        "checkpoint": {},
        "locks": (),
        "listeners": {},
        "addresses": {},
        "socket_paths": (),
        "lifeline": 0,
        "lifeline_writer": 0,
        "counter_tables": (),
        "notify_address": "",
        "watchdog_s": 0.0,
        "children": (),
        "dying_groups": (),
    }
    return KeeperState(**(plain | fields))  # type: ignore[arg-type]  # fields by name
