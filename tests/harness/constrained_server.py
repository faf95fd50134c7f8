"""Servers that meet a machine unlike this one: few pids, a small disk, a reader that does not read, a clock that jumps.

Each is a Server that is started in another way; what is around it belongs to it alone and ends with it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from harness.server import Server


def _can_unshare() -> bool:
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return tried.returncode == 0


needs_namespaces = pytest.mark.skipif(not _can_unshare(), reason="no namespaces can be made here")
_KERNEL = tuple(int(each) for each in platform.release().split("-", maxsplit=1)[0].split(".")[:2])
needs_own_pid_max = pytest.mark.skipif(
    _KERNEL < (6, 14), reason="kernel.pid_max is one for the whole machine before Linux 6.14"
)


class FewPidsServer(Server):
    """In a pid namespace of its own with so few numbers that they are soon used again."""

    NUMBERS = 400

    def _command(self) -> list[str]:
        script = f'echo {self.NUMBERS} > /proc/sys/kernel/pid_max && exec "$@"'
        wrap = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]
        return [*wrap, *super()._command()]

    def stop(self) -> int:
        """The process that was started is not the keeper, but waits for it."""
        for keeper in psutil.Process(self.process.pid).children():
            keeper.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class SmallDiskServer(Server):
    """Its state directory lies on a disk of 1 MiB."""

    def _command(self) -> list[str]:
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        script = f'mount -t tmpfs -o size=1m,mode=700 tmpfs {self.state_dir} && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *super()._command()]


class UnreadOutputServer(Server):
    """What it prints goes into a small pipe that nobody reads, unless the test does."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)
        self.output.close()
        self.output = os.fdopen(writer, "wb", buffering=0)  # type: ignore[assignment] # is written to by the server only
        return super()._start()

    def read(self) -> str:
        """What lies in the pipe."""
        try:
            return os.read(self.reader, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""

    def remove(self) -> None:
        """Also the pipe."""
        os.close(self.reader)
        super().remove()


JUMPING = """
import datetime, os, time

_time, _time_ns = time.time, time.time_ns


def offset_s():
    try:
        with open({path!r}) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0


class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=offset_s())


time.time = lambda: _time() + offset_s()
time.time_ns = lambda: _time_ns() + int(offset_s() * 1e9)
datetime.datetime = Jumping
"""


class FakeClock:
    """A wall clock that can be set: Python processes that get `env` read it instead of the machine's."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "offset"
        library = folder / "library"
        library.mkdir()
        (library / "sitecustomize.py").write_text(JUMPING.format(path=str(self._path)))
        self.env: Mapping[str, str] = {"PYTHONPATH": str(library)}

    def jump(self, seconds: float) -> None:
        """Wrong by so much from now on."""
        new = self._path.with_name("new")
        new.write_text(str(seconds))
        new.replace(self._path)
