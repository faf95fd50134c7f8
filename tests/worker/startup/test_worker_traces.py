"""A worker leaves no trace: no file but what its model writes, no connection.

What it does with files and sockets between two looks is read from strace, where that may trace.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from engines.build import write_identity_onnx, write_python, write_torchscript
from engines.real_worker import RealWorker
from harness.server import eventually
from mmsup.ipc import exit_codes
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment, scratch_dir, worker_spawn

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
WORKER = (7, 1)
ALLOWED = ("/dev/null", "/proc/", "/sys/", "anon_inode:", "pipe:", "socket:", "/memfd:")
"""Beginnings of names that a worker may open for writing: nothing there is a file on a disk."""
MAKING = (
    "creat",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
)
TRACED = ",".join(("trace=socket", "connect", "sendto", "open", "openat", *MAKING))
MAKES = re.compile(rf"\b(?:open(?:at)?\(.*O_CREAT|(?:{'|'.join(MAKING)})\()")


def write_doubling(repository: Path, name: str) -> ModelSpec:
    code = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x'] * 2}\n"
    return write_python(repository, name, code, [TensorSpec("x", "FP32", (-1,))], [TensorSpec("y", "FP32", (-1,))])


KINDS: dict[str, tuple[str, str, Callable[[Path, str], ModelSpec]]] = {
    "numpy": ("x", "y", write_doubling),
    "onnxruntime": ("x", "y", write_identity_onnx),
    "torch": ("INPUT__0", "OUTPUT__0", write_torchscript),
}
"""By library: the input, the output, and what writes a model."""


def strace_command(into: Path) -> Sequence[str]:
    """What traces the command after it, which stays our child; empty, with a warning, where that is not possible."""
    found = shutil.which("strace")
    if found is None:
        warnings.warn("there is no strace: files and connections between two looks are not seen", stacklevel=2)
        return ()
    words = (found, "-D", "-f", "-q", "-e", TRACED, "-e", "signal=none", "-o", str(into))
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        warnings.warn("strace may not trace here: files and connections between two looks are not seen", stacklevel=2)
        return ()
    return words


def inet_sockets(pid: int) -> list[str]:
    """The lines of /proc for its sockets of IPv4 and IPv6."""
    targets = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {each[len("socket:[") : -1] for each in targets if each.startswith("socket:")}
    lines = [
        line
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]
    ]
    return [line for line in lines if line.split()[9] in inodes]


def written_files(pid: int, own: Path) -> list[str]:
    """Files outside its own folder that it has open for writing."""
    found = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        name = os.readlink(each)
        flags = re.search(r"^flags:\s*(\d+)", (each.parent.parent / "fdinfo" / each.name).read_text(), re.MULTILINE)
        is_written = flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
        if is_written and not name.startswith((*ALLOWED, str(own))):
            found.append(name)
    return found


@pytest.mark.parametrize("library", KINDS)
def test_a_worker_makes_no_file_and_no_connection(library: str, repository: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    given, got, write = KINDS[library]
    spec = write(repository, "m")
    environment = LaunchEnvironment(os.environ, str(tmp_path / "scratch"), str(tmp_path), os.cpu_count() or 1)
    own = Path(scratch_dir(environment, WORKER))
    own.mkdir(parents=True)
    before, output, trace = sorted(tmp_path.rglob("*")), tmp_path / "out", tmp_path / "out" / "trace"
    output.mkdir()
    env = worker_spawn(spec, WORKER, environment, (), "").env
    with RealWorker(spec, output, env=env, before=strace_command(trace)) as worker:
        worker.wait_ready()
        gateway, pid = worker.gateway(), worker.process.pid
        assert gateway.array(gateway.request({given: X}), got).shape == X.shape
        assert inet_sockets(pid) == []
        assert written_files(pid, output) == []
        worker.stop()
        assert worker.wait_exit() == exit_codes.SUCCESS
    assert [each for each in sorted(tmp_path.rglob("*")) if output not in (each, each.parent)] == before
    if trace.exists():
        ended = re.compile(rf"^{pid} +\+\+\+ exited", re.MULTILINE)  # strace aligns short numbers
        eventually(lambda: ended.search(trace.read_text()), "strace has written all")
        lines = trace.read_text().splitlines()
        assert [line for line in lines if "AF_INET" in line] == []
        made = [line for line in lines if MAKES.search(line) and " = -1 " not in line and '"/dev/null"' not in line]
        assert made == []
