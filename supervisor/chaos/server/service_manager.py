"""A minimal systemd for one server: starts it, keeps its listening sockets, and restarts it after a kill.

As the unit file asks of systemd, sockets that the server puts into the file descriptor store (FDSTORE, FDNAME on the
notify socket) are passed to the next process by LISTEN_FDS. Connections made in between wait and are not refused.
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

from mmsup.ipc.environment import DUMPABLE
from mmsup.supervisor.chaos.observe import leak_check

MAX_MESSAGE_BYTES: Final = 4096
EXIT_LIMIT_S: Final = 15.0
"""How long descendants of a killed keeper may take to exit: frozen ones only exit when the next keeper thaws them."""
EXIT_POLLS: Final = 300
_FIRST_FD: Final = 3
_FD_LAUNCHER: Final = f"""
import fcntl, os, sys
fds = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 64) for each in sys.argv[1].split(",")]
for target, fd in enumerate(fds, {_FIRST_FD}):
    os.dup2(fd, target)
os.closerange({_FIRST_FD} + len(fds), 256)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Program that moves the given descriptors to 3, 4, …, sets LISTEN_PID to its own pid and executes the server."""


class ServiceManager:
    """Runs one server. `folder` gets the notify socket and the file `output`."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
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
        return self._process.pid

    def status(self) -> int | None:
        """The server's exit status; None while it runs."""
        return self._process.poll()

    def read_notifications(self) -> None:
        """Read pending notifications; keep the descriptors that came with them."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, fds, _, _ = socket.recv_fds(self._socket, MAX_MESSAGE_BYTES, 8)
                lines = message.decode(errors="replace").split("\n")
                names = [each.removeprefix("FDNAME=") for each in lines if each.startswith("FDNAME=")]
                for fd, name in zip(fds, names, strict=False):
                    self._close_fd(name)
                    self._stored_fds[name] = fd

    async def replace_keeper(self) -> list[str]:
        """Kill the keeper and start another at once; a finding for each old process that has not exited in time."""
        self.read_notifications()
        pids = leak_check.process_tree(self.pid)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._process = self._start()
        for _ in range(EXIT_POLLS):
            if not leak_check.running(pids):
                break
            await asyncio.sleep(EXIT_LIMIT_S / EXIT_POLLS)
        return [f"I2 process {pid} outlived its keeper" for pid in leak_check.running(pids)]

    async def stop(self, limit_s: float) -> int:
        """SIGTERM, after `limit_s` SIGKILL; returns the exit status."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.read_notifications()
        for name in list(self._stored_fds):
            self._close_fd(name)
        self._socket.close()
        self._output.close()

    def _start(self) -> subprocess.Popen[bytes]:
        fds = list(self._stored_fds.values())
        environ = {**os.environ, DUMPABLE: "true", "NOTIFY_SOCKET": str(self._address)}
        command = self._command
        if fds:
            environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(self._stored_fds)}
            command = [sys.executable, "-I", "-S", "-c", _FD_LAUNCHER, ",".join(map(str, fds)), *command]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, env=environ,
            close_fds=True, pass_fds=fds,
        )  # fmt: skip

    def _close_fd(self, name: str) -> None:
        with contextlib.suppress(KeyError):
            os.close(self._stored_fds.pop(name))
