"""A sandbox of Linux namespaces in which a program runs as process 1 and from which the host cannot be written to.

Made for a real systemd (service.py), whose start empties /tmp, sets kernel variables and writes below /etc. sandbox.sh
makes everything of the host read-only and checks that; `verify` checks it again from outside before anything runs
inside, and a canary file in the host's /tmp shows at the end that nothing was written there.

Covers: control groups, namespaces, the checks, running a command inside, sockets inside, removal.
Does not cover: what process 1 is, and what it is used for (service.py).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, get_errno
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from harness.server import eventually

CHECKOUT: Final = Path(__file__).resolve().parents[3]
ENTRY_SCRIPT: Final = Path(__file__).with_name("sandbox.sh")
TOOLS: Final = ("unshare", "nsenter", "setpriv", "findmnt", "ip", "mount")
UNSHARE: Final = (
    *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net"),
    *("--propagation", "private", "--kill-child", "--"),
)
ENTER: Final = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--wd=/", "--")
REFUSED: Final = 9
"""Exit code of sandbox.sh when something of the host can be written to."""
_CLONE_NEWNET: Final = 0x40000000

T = TypeVar("T")


@cache
def missing_requirement() -> str:
    """Why there can be no sandbox here; empty if there can."""
    if os.geteuid():
        return "not root"
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"not on this machine: {', '.join(absent)}"
    if not any(kind == "cgroup2" for _, kind in hierarchies()):
        return "no cgroup v2 hierarchy"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def hierarchies() -> list[tuple[Path, str]]:
    """Every mounted tree of control groups, and its kind."""
    fields = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [(Path(place), kind) for _, place, kind, *_ in fields if kind in ("cgroup", "cgroup2")]


class Sandbox:
    """A read-only sandbox with PROGRAM as process 1, until `remove`."""

    def __init__(self, *program: str) -> None:
        self.token = f"sandbox_{secrets.token_hex(8)}"
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_test_"))
        self.canary = Path(f"/tmp/mmsup_test_canary_{self.token}")
        self.canary.write_text(self.token)
        self.groups = [_join_point(place, self.token) for place, _ in hierarchies()]
        self._output = open(self.root / "output", "w+b")  # noqa: SIM115 - closed by remove()
        self.pid = 0
        """Host pid of process 1; 0 until `verify` has succeeded."""
        self._inside: ThreadPoolExecutor | None = None
        self.process = subprocess.Popen(
            self._command(program), stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, cwd="/"
        )

    def _command(self, program: Sequence[str]) -> list[str]:
        """A shell joins the new groups, then becomes `unshare`; it dies with this process, and the sandbox with it."""
        join = 'for each in $0; do echo $$ >"$each/cgroup.procs" || exit 9; done; exec "$@"'
        groups = " ".join(str(each) for each in self.groups)
        return [
            *("sh", "-c", join, groups, "setpriv", "--pdeathsig", "KILL", "--"),
            *UNSHARE,
            *self.entry_command(self.token, *program),
        ]

    @staticmethod
    def entry_command(token: str, *program: str) -> list[str]:
        """The first command in the namespaces: sandbox.sh, which becomes PROGRAM or exits with `REFUSED`."""
        here = os.readlink("/proc/self/ns/mnt")
        return [str(ENTRY_SCRIPT), here, token, str(CHECKOUT), sys.base_prefix, sysconfig.get_path("purelib"), *program]

    def output(self) -> str:
        """What process 1 has printed."""
        return (self.root / "output").read_text(errors="replace")

    def verify(self) -> Sandbox:
        """Wait until process 1 runs, and check from outside that it shares nothing with the host."""
        pid = eventually(self._first, "process 1 of the sandbox")
        marker = Path(f"/proc/{pid}/root/tmp/{self.token}")
        eventually(marker.exists, f"the marker inside: {self.output()}")
        assert marker.read_text().strip() == self.token
        assert not Path("/tmp", self.token).exists(), "the sandbox has the host's /tmp"
        for kind in ("mnt", "pid", "cgroup", "net", "uts", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        self.pid = pid
        return self

    def _first(self) -> int:
        if self.process.poll() is not None:
            raise AssertionError(f"the sandbox ended with {self.process.returncode}: {self.output()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inner = [int(each) for each in children if _number_inside(int(each)) == 1]
        return inner[0] if inner else 0

    # Inside.

    def path(self, inside: str) -> Path:
        """The path, on the host, of a file of the sandbox."""
        assert self.pid, "not verified yet"
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end."""
        assert self.pid, "not verified yet"
        enter = ["nsenter", "--target", str(self.pid), *ENTER, *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout_s, check=False)

    def socket(self) -> socket.socket:
        """A TCP socket in the network namespace of the sandbox, in which it stays."""
        return self._in_network(socket.socket)

    def _in_network(self, make: Callable[[], T]) -> T:
        if self._inside is None:
            self._inside = ThreadPoolExecutor(1, "sandbox", self._enter_network)
        return self._inside.submit(make).result()

    def _enter_network(self) -> None:
        """Move this thread alone into the network namespace of the sandbox."""
        fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                raise OSError(get_errno(), "setns")
        finally:
            os.close(fd)

    def host_pid(self, inside: int) -> int:
        """The host pid of a process of the sandbox."""
        found = [int(each) for each in os.listdir("/proc") if each.isdigit() and self._is(int(each), inside)]
        assert len(found) == 1, f"pid {inside} of the sandbox is {found} on the host"
        return found[0]

    def _is(self, pid: int, inside: int) -> bool:
        try:
            same = os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:  # it is gone
            return False
        return same and _number_inside(pid) == inside

    # The end.

    def remove(self) -> None:
        """Kill everything in the sandbox and remove its groups; check that the host's /tmp was not written to."""
        if self._inside is not None:
            self._inside.shutdown()
        if self.process.poll() is None:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)  # its parent reaps it, so that the number is its own
            else:
                self.process.kill()
        self.process.wait(60)
        for group in self.groups:
            eventually(lambda top=group: _remove_tree(top), f"{group} is empty")  # type: ignore[misc]  # a lambda's default has no type
        self._output.close()
        shutil.rmtree(self.root)
        assert self.canary.read_text() == self.token, "the sandbox reached the host's /tmp"
        self.canary.unlink()


def _join_point(hierarchy: Path, token: str) -> Path:
    """Make a group that processes can join."""
    group = hierarchy / f"mmsup_test_{token}"
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # v1 gives a new group none of either
        if (group / name).exists() and not (group / name).read_text().strip():
            (group / name).write_text((hierarchy / name).read_text())
    return group


def _remove_tree(top: Path) -> bool:
    """Remove a group and those below; False if something still lives there."""
    if not top.exists():
        return True
    try:
        for folder, _, _ in os.walk(top, topdown=False):
            os.rmdir(folder)
    except OSError:
        return False
    return True


def _number_inside(pid: int) -> int:
    """The pid of a process in its innermost namespace; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    (numbers,) = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
    return int(numbers[-1]) if len(numbers) > 1 else 0
