"""Servers on a constrained machine: few pids, a small disk, unread output, a clock that jumps.

Each is a Server with another start command; its surroundings are private and are removed with it.
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
    """In a pid namespace with so few pids that they are soon reused."""

    NUMBERS = 400

    def _command(self) -> list[str]:
        script = f'echo {self.NUMBERS} > /proc/sys/kernel/pid_max && exec "$@"'
        wrap = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]
        return [*wrap, *super()._command()]

    def stop(self) -> int:
        """Signal the keeper, which is a child of the process that was started."""
        for keeper in psutil.Process(self.process.pid).children():
            keeper.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class SmallDiskServer(Server):
    """Its state directory is a tmpfs of 1 MiB."""

    def _command(self) -> list[str]:
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        script = f'mount -t tmpfs -o size=1m,mode=700 tmpfs {self.state_dir} && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *super()._command()]


class NoCgroupServer(Server):
    """It sees no control groups."""

    def _command(self) -> list[str]:
        script = 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *super()._command()]


class UnreadOutputServer(Server):
    """Its output goes to a pipe of 4 KiB that only the test reads."""

    def _start(self) -> subprocess.Popen[bytes]:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(self.reader, False)
        self.output.close()
        self.output = os.fdopen(writer, "wb", buffering=0)  # type: ignore[assignment] # is written to by the server only
        return super()._start()

    def read(self) -> str:
        """The contents of the pipe."""
        try:
            return os.read(self.reader, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""

    def remove(self) -> None:
        """Close the pipe as well."""
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
    """A wall clock that a test can set, for Python processes started with `env`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "offset"
        library = folder / "library"
        library.mkdir()
        (library / "sitecustomize.py").write_text(JUMPING.format(path=str(self._path)))
        self.env: Mapping[str, str] = {"PYTHONPATH": str(library)}

    def jump(self, seconds: float) -> None:
        """Set the offset from the real time."""
        new = self._path.with_name("new")
        new.write_text(str(seconds))
        new.replace(self._path)
