"""A nest: namespaces in which a program is the first process, and from which this machine cannot be written to.

Made for a real systemd (booted.py), whose start empties /tmp, sets kernel variables and writes below /etc. nest.sh
seals the nest and proves it; here the seal is proved once more from outside, before anything is sent in, and a canary
in the real /tmp says at the end that nothing got out.

Covers: control groups, namespaces, the proofs, running a command inside, sockets inside, the end of it all.
Does not cover: what the first process is, and what it is asked (booted.py).
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

CHECKOUT: Final = Path(__file__).resolve().parents[2]
SEAL: Final = Path(__file__).with_name("nest.sh")
TOOLS: Final = ("unshare", "nsenter", "setpriv", "findmnt", "ip", "mount")
UNSHARE: Final = (
    *("unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net"),
    *("--propagation", "private", "--kill-child", "--"),
)
ENTER: Final = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--wd=/", "--")
REFUSED: Final = 9
"""What nest.sh ends with when the nest is not sealed."""
_CLONE_NEWNET: Final = 0x40000000

T = TypeVar("T")


@cache
def missing() -> str:
    """Why there can be no nest here; empty if there can."""
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


class Nest:
    """A sealed nest with PROGRAM as its first process, until `remove`."""

    def __init__(self, *program: str) -> None:
        self.token = f"nest_{secrets.token_hex(8)}"
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_test_"))
        self.canary = Path(f"/tmp/mmsup_test_canary_{self.token}")
        self.canary.write_text(self.token)
        self.groups = [_join_point(place, self.token) for place, _ in hierarchies()]
        self._output = open(self.root / "output", "w+b")  # noqa: SIM115 - closed by remove()
        self.pid = 0
        """Of the first process, as this machine counts; 0 until the seal is proved."""
        self._inside: ThreadPoolExecutor | None = None
        self.process = subprocess.Popen(
            self._command(program), stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, cwd="/"
        )

    def _command(self, program: Sequence[str]) -> list[str]:
        """A shell joins the fresh groups, then becomes `unshare`; it dies with this process, and the nest with it."""
        join = 'for each in $0; do echo $$ >"$each/cgroup.procs" || exit 9; done; exec "$@"'
        groups = " ".join(str(each) for each in self.groups)
        return [
            *("sh", "-c", join, groups, "setpriv", "--pdeathsig", "KILL", "--"),
            *UNSHARE,
            *self.seal(self.token, *program),
        ]

    @staticmethod
    def seal(token: str, *program: str) -> list[str]:
        """What is run first in the namespaces, or refuses there: nest.sh."""
        here = os.readlink("/proc/self/ns/mnt")
        return [str(SEAL), here, token, str(CHECKOUT), sys.base_prefix, sysconfig.get_path("purelib"), *program]

    def output(self) -> str:
        """What the first process has said."""
        return (self.root / "output").read_text(errors="replace")

    def prove(self) -> Nest:
        """Returns when the seal holds as seen from outside. Nothing is sent in before."""
        pid = eventually(self._first, "the first process of the nest")
        marker = Path(f"/proc/{pid}/root/tmp/{self.token}")
        eventually(marker.exists, f"the marker inside: {self.output()}")
        assert marker.read_text().strip() == self.token
        assert not Path("/tmp", self.token).exists(), "the nest's /tmp is this machine's"
        for kind in ("mnt", "pid", "cgroup", "net", "uts", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
        self.pid = pid
        return self

    def _first(self) -> int:
        if self.process.poll() is not None:
            raise AssertionError(f"the nest ended with {self.process.returncode}: {self.output()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        inner = [int(each) for each in children if _number_inside(int(each)) == 1]
        return inner[0] if inner else 0

    # Inside.

    def path(self, inside: str) -> Path:
        """The path of a file of the nest, for us."""
        assert self.pid, "not proved yet"
        return Path(f"/proc/{self.pid}/root{inside}")

    def run(self, *command: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside, to its end."""
        assert self.pid, "not proved yet"
        enter = ["nsenter", "--target", str(self.pid), *ENTER, *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout_s, check=False)

    def socket(self) -> socket.socket:
        """A TCP socket of the nest's network: it keeps that, whoever uses it."""
        return self._in_network(socket.socket)

    def _in_network(self, make: Callable[[], T]) -> T:
        if self._inside is None:
            self._inside = ThreadPoolExecutor(1, "nest", self._enter_network)
        return self._inside.submit(make).result()

    def _enter_network(self) -> None:
        """This thread alone lives in the nest's network from now on."""
        fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                raise OSError(get_errno(), "setns")
        finally:
            os.close(fd)

    def outside(self, inside: int) -> int:
        """The pid that this machine gives to a process of the nest."""
        found = [int(each) for each in os.listdir("/proc") if each.isdigit() and self._is(int(each), inside)]
        assert len(found) == 1, f"pid {inside} of the nest is {found} here"
        return found[0]

    def _is(self, pid: int, inside: int) -> bool:
        try:
            same = os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:  # it is gone
            return False
        return same and _number_inside(pid) == inside

    # The end.

    def remove(self) -> None:
        """End everything in the nest; then nothing of it is left, and the machine's /tmp is as it was."""
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
        assert self.canary.read_text() == self.token, "the nest reached this machine's /tmp"
        self.canary.unlink()


def _join_point(hierarchy: Path, token: str) -> Path:
    """A fresh group that can be joined."""
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
