"""A real keeper with a relay for a brain: what a test says, the keeper hears from its brain, and back."""

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

DEADLINE_S = 20.0
RELAY = str(Path(__file__).with_name("relay_brain.py"))
LAUNCHER = """
import sys
from mmsup.supervisor import boot, hotline, keeper, succession
hotline.BEAT_LIMIT_S = hotline.FIRST_BEAT_S = {beat_s}
keeper.STOP_MARGIN_S = {margin_s}
succession.LEAVE_S = {leave_s}
sys.exit(boot.main(sys.argv[2:], [sys.executable, {relay!r}, sys.argv[1]]))
"""
SLEEPER = ("/bin/sh", "-c", "exec sleep 1000")
M = TypeVar("M")


def wait_readable(fd: int, what: str) -> None:
    """Until there is something to read (of a pidfd: until that process is dead)."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), f"no {what} within {DEADLINE_S} s"


def wait_until(condition: Any, what: str) -> None:  # a callable without arguments
    """For facts of /proc, which nobody announces."""
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


class Kid:
    """A child as a brain holds it."""

    def __init__(self, message: ChildDescriptors, descriptors: list[int]) -> None:
        self.message = message
        self.token = message.token
        self.pid = message.pid
        self.descriptors = descriptors
        self.pidfd, self.control, self.page, self.crash, self.log = descriptors

    def output(self) -> bytes:
        """What it prints next."""
        wait_readable(self.log, "output")
        return os.read(self.log, 65536)

    def close(self) -> None:
        close_fds(self.descriptors)


class RelayedBrain:
    """One life of the brain."""

    def __init__(self, sock: socket.socket) -> None:
        self._line = ControlChannel(sock)
        self._kids: list[Kid] = []
        hello = self._receive()[0].decode().split()
        self.pid = int(hello[0])
        self.names = hello[1:]

    def say(self, message: object) -> None:
        assert self._line.send(to_json(message))

    def say_bytes(self, data: bytes) -> None:
        assert self._line.send(data)

    def hear(self, kind: type[M]) -> M:
        """The next message, which must be of this kind."""
        data, descriptors = self._receive()
        message = from_json(data, FROM_KEEPER)
        if isinstance(message, ChildDescriptors):
            self._kids.append(Kid(message, descriptors))
        assert isinstance(message, kind), f"{kind.__name__} expected, {message} came"
        return message

    def kid(self) -> Kid:
        self.hear(ChildDescriptors)
        return self._kids[-1]

    def spawn(self, token: str, *argv: str, **fields: Any) -> Kid:  # fields of Spawn
        self.say(spawn_of(token, *argv, **fields))
        return self.kid()

    def leave(self) -> None:
        """End it in good order; what it holds of children is still the test's."""
        self._line.close()

    def close(self) -> None:
        self.leave()
        for kid in self._kids:
            kid.close()

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
    """A keeper process and the listener on which its brains report to the test."""

    def __init__(self, folder: Path, **options: Any) -> None:  # fields of Settings; environ, keep, close; constants
        self.environ: Mapping[str, str] = options.pop("environ", {})
        self._keep: list[int] = options.pop("keep", [])
        closing = f"import os; os.close({options.pop('close')})" if "close" in options else ""
        self._launcher = closing + LAUNCHER.format(
            relay=RELAY,
            beat_s=options.pop("beat_s", 10.0),
            margin_s=options.pop("margin_s", 10.0),
            leave_s=options.pop("leave_s", 10.0),
        )
        self.settings = Settings(
            **{
                "repositories": (),
                "runtime_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "http_port": 0,
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
        self._brains: list[RelayedBrain] = []
        self.process = self.launch()

    @property
    def pid(self) -> int:
        return self.process.pid

    def launch(self) -> subprocess.Popen[bytes]:
        """One keeper more."""
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

    def brain(self) -> RelayedBrain:
        """The next brain that comes."""
        wait_readable(self._listener.fileno(), f"brain; the keeper said: {self.stderr.read_text()}")
        brain = RelayedBrain(self._listener.accept()[0])
        self._brains.append(brain)
        return brain

    def greeted_brain(self) -> RelayedBrain:
        brain = self.brain()
        brain.hear(KeeperInventory)
        return brain

    def finish(self, brain: RelayedBrain, code: int = 0) -> None:
        brain.say(ShutdownFinished(code))
        assert self.process.wait(DEADLINE_S) == code, self.stderr.read_text()

    def close(self) -> None:
        """Whatever the test did, nothing of it is left."""
        for _ in range(int(DEADLINE_S / 0.1)):
            self.process.send_signal(signal.SIGINT)  # two at once would be one
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.1)
                break
        else:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        for brain in self._brains:
            brain.close()
        self._listener.close()


@contextlib.contextmanager
def keeper_rig(folder: Path, **options: Any) -> Iterator[KeeperRig]:  # as KeeperRig
    rig = KeeperRig(folder, **options)
    try:
        yield rig
    finally:
        rig.close()


def forget(brain: RelayedBrain, token: str) -> ChildExited:
    """Hear that a child ended and have it forgotten."""
    ended = brain.hear(ChildExited)
    assert ended.token == token
    brain.say(ForgetChild(token))
    return ended
