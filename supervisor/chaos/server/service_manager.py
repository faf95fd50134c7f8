"""The part of a service manager that chaos plays: it starts the server, and starts it again when it was killed.

It does what the unit asks of systemd: the keeper is told of by the exit of its process, and the listeners that it gave
into the store are handed to the next one. So whoever connects in between waits, and is not refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmsup.supervisor.chaos.observe import leak_check

MAX_MESSAGE_BYTES: Final = 4096
EXIT_LIMIT_S: Final = 15.0
"""How long what was below a killed keeper may be seen: the frozen go when the next keeper thaws them."""
EXIT_POLLS: Final = 300
_FIRST_FD: Final = 3
_FD_LAUNCHER: Final = f"""
import fcntl, os, sys
given = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 64) for each in sys.argv[1].split(",")]
for place, fd in enumerate(given, {_FIRST_FD}):
    os.dup2(fd, place)
os.closerange({_FIRST_FD} + len(given), 256)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""What stands between us and a server that is handed descriptors: they must lie at 3, 4, … of a pid known to it."""


class ServiceManager:
    """Of one server."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        """`folder`: for the socket that the server notifies, and for `output`, all that it prints."""
        self._command = list(command)
        self._address = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._address))
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._output = (folder / "output").open("wb")
        self._stored_fds: dict[str, int] = {}
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The keeper."""
        return self._process.pid

    def status(self) -> int | None:
        """The exit status of the server; None while it runs."""
        return self._process.poll()

    def read_notifications(self) -> None:
        """Read what the server has said by now, and keep what it gave."""
        with contextlib.suppress(BlockingIOError):
            while True:
                said, descriptors, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 8)
                lines = said.decode(errors="replace").split("\n")
                names = [each.removeprefix("FDNAME=") for each in lines if each.startswith("FDNAME=")]
                for fd, name in zip(descriptors, names, strict=False):
                    self._close_fd(name)
                    self._stored_fds[name] = fd

    async def replace_keeper(self) -> list[str]:
        """Kill the keeper and start another at once. What of the old server is still there a good while later."""
        self.read_notifications()
        family = leak_check.process_tree(self.pid)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._process = self._start()
        for _ in range(EXIT_POLLS):
            if not leak_check.running(family):
                break
            await asyncio.sleep(EXIT_LIMIT_S / EXIT_POLLS)
        return [f"I2 process {pid} outlived its keeper" for pid in leak_check.running(family)]

    async def stop(self, limit_s: float) -> int:
        """SIGTERM, and the exit status; SIGKILL after the limit."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        """Whatever state it is in: it is over."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.read_notifications()
        for name in list(self._stored_fds):
            self._close_fd(name)
        self._socket.close()
        self._output.close()

    def _start(self) -> subprocess.Popen[bytes]:
        descriptors = list(self._stored_fds.values())
        environ = {**os.environ, "NOTIFY_SOCKET": str(self._address)}
        command = self._command
        if descriptors:
            environ |= {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": ":".join(self._stored_fds)}
            places = ",".join(str(each) for each in descriptors)
            command = [sys.executable, "-I", "-S", "-c", _FD_LAUNCHER, places, *command]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, env=environ,
            close_fds=True, pass_fds=descriptors,
        )  # fmt: skip

    def _close_fd(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            os.close(self._stored_fds.pop(name))
