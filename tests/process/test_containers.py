"""What containers do to a server: refused system calls, closed descriptors, foreign or full volumes, a small /dev/shm.

A server that cannot run says so in one sentence and ends with 2; it never listens without answering.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import psutil
import pytest

from engines.build import write_identity_onnx
from harness import deny_calls
from harness.constrained_server import needs_namespaces
from harness.invariants import assert_gone, server_processes
from harness.server import EVENT_S, START_S, Http, Server
from mmsup.ipc import exit_codes

pytestmark = pytest.mark.slow
DENY: Final = str(Path(deny_calls.__file__))
NOBODY: Final = 65534
ELEMENTS: Final = 3 << 20
"""12 MiB of FP32: more than the 1 MiB of /dev/shm of one test."""
CLOSED: Final = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"]


def serve_command(folder: Path, *flags: str) -> list[str]:
    (folder / "models").mkdir(exist_ok=True)
    directories = ["--runtime-dir", str(folder / "run"), "--state-dir", str(folder / "state")]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    repository = ["--model-repository", str(folder / "models")]
    return [sys.executable, "-m", "mmsup.supervisor.cli", "serve", *repository, *directories, *ports, *flags]


def refused(command: list[str]) -> str:
    """What a start prints that is refused with 2: one line, and no traceback."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == exit_codes.USAGE, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("mmsup: "), done.stderr
    return done.stderr


@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize(
    "call", ["memfd_create", "pidfd_open", "pidfd_send_signal", "signalfd4", "eventfd2", "socketpair", "epoll_create1"]
)
def test_a_system_call_that_is_refused_and_needed_is_named_before_anything_listens(
    tmp_path: Path, call: str, error: str
) -> None:
    text = refused([sys.executable, DENY, f"{call}:{error}", *serve_command(tmp_path)])
    assert f"this system refuses {call} (" in text
    assert "seccomp profile" in text
    assert not (tmp_path / "run").exists()


class FilteredServer(Server):
    """Without the calls that only some machines need."""

    def _command(self) -> list[str]:
        return [sys.executable, DENY, "timerfd_create:EPERM,unshare:EPERM,clone3:ENOSYS", *super()._command()]


class ClosedDescriptorsServer(Server):
    """Started with standard descriptors that are closed, as `closed` says to the shell."""

    closed = ""

    def _command(self) -> list[str]:
        return ["sh", "-c", f'exec "$@" {self.closed}', "sh", *super()._command()]


class SmallShmServer(Server):
    """With 1 MiB of /dev/shm."""

    def _command(self) -> list[str]:
        script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *super()._command()]


def assert_serves(server: Server, elements: int = 1, how: str = "") -> None:
    """It answers, by a worker that was started in this way, and stops without leaving anything."""
    try:
        server.await_ready()
        http = Http(server.address())
        assert http.infer("identity", x=("FP32", [elements], [1.0] * elements))[0] == 200
        http.close()
        assert server.ctl("show", name="identity")["instances"][0]["start"].startswith(how)
        everyone = server_processes(server)
        assert server.stop() == 0, server.log()
        assert_gone(server, everyone)
        assert "Traceback" not in server.log()
    finally:
        server.remove()


def test_a_server_without_timerfd_unshare_and_clone3_serves_and_forks_its_workers(tmp_path: Path) -> None:
    write_identity_onnx(tmp_path, "identity")
    assert_serves(FilteredServer(tmp_path, "--zygotes", "eager"), how="forked")


@pytest.mark.parametrize("closed", CLOSED)
def test_a_server_that_is_started_with_closed_descriptors_serves(tmp_path: Path, closed: str) -> None:
    write_identity_onnx(tmp_path, "identity")
    assert_serves(type("Closed", (ClosedDescriptorsServer,), {"closed": closed})(tmp_path))


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("command", [["check", "--model-repository", "."], ["ctl", "--runtime-dir", ".", "status"]])
def test_no_command_prints_a_traceback_where_descriptors_are_closed(
    tmp_path: Path, command: list[str], closed: str
) -> None:
    script = f'exec "$@" {closed}'
    line = ["sh", "-c", script, "sh", sys.executable, "-m", "mmsup.supervisor.cli", *command]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=START_S)
    assert done.returncode == (exit_codes.SUCCESS if command[0] == "check" else exit_codes.NO_SERVER), done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@needs_namespaces
def test_a_body_that_is_larger_than_dev_shm_is_served(tmp_path: Path) -> None:
    write_identity_onnx(tmp_path, "identity")
    assert_serves(SmallShmServer(tmp_path, "--http-max-input-size", "256MiB"), ELEMENTS)


def reachable_interpreter(spare: Path) -> str:
    """A shell script by which an interpreter in a private home, such as root's, can be run by everyone. `spare`: an
    empty directory to mount that home on."""
    home = next((each for each in Path(sys.base_prefix).parents if not each.stat().st_mode & 0o001), None)
    if home is None:
        return "true"
    prefix = sys.base_prefix
    return (
        f"mount --rbind {home} {spare} && mount -t tmpfs -o mode=755 tmpfs {home} && "
        f"mkdir -p {prefix} && mount --bind {spare}/{Path(prefix).relative_to(home)} {prefix}"
    )


class RestrictedServer(Server):
    """As docs/containers.md has it: PID 1, another user without capabilities, a read-only root, 64 MiB of /dev/shm, no
    control groups, and two volumes."""

    def _command(self) -> list[str]:
        uid = NOBODY
        volumes = [self.root / "run", self.root / "state"]
        for each in volumes:
            each.mkdir(exist_ok=True)
        spare = self.root / "home"
        spare.mkdir(exist_ok=True)
        self.root.chmod(0o755)
        (self.root / "notify").chmod(0o777)
        script = " && ".join(
            [
                "mount --make-rprivate /",
                reachable_interpreter(spare),
                *(f"mount -t tmpfs -o mode=700,uid={uid},gid={uid} tmpfs {each}" for each in volumes),
                "mount -t tmpfs -o ro tmpfs /sys/fs/cgroup",
                "mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm",
                "mount -o remount,bind,ro /",
                f'exec setpriv --reuid={uid} --regid={uid} --clear-groups --bounding-set=-all --no-new-privs "$@"',
            ]
        )
        wrap = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh"]
        return [*wrap, *super()._command()]

    def stop(self) -> int:
        """Signal the keeper, which is a child of the process that was started."""
        self.keeper().send_signal(signal.SIGTERM)
        return self.process.wait(START_S)

    def keeper(self) -> psutil.Process:
        (keeper,) = psutil.Process(self.process.pid).children()
        return keeper

    def pid_outside(self, pid: int) -> int:
        """The pid, in our own namespace, of the process that has this pid in the server's."""
        for each in self.keeper().children(recursive=True):
            status = Path(f"/proc/{each.pid}/status").read_text()
            if f"NSpid:\t{each.pid}\t{pid}\n" in status:
                return each.pid
        raise AssertionError(f"no process has pid {pid} in there")

    def enter(self) -> None:
        """Find its control socket, which lies in a volume that only it has mounted."""
        self.runtime_dir = Path(f"/proc/{self.keeper().pid}/root{self.runtime_dir}")


@pytest.mark.root
@needs_namespaces
def test_a_server_serves_as_pid_1_without_root_with_a_read_only_root_and_no_control_groups() -> None:
    repository = Path(tempfile.mkdtemp(prefix="mmsup_test_models_"))  # which another user can read
    write_identity_onnx(repository, "identity")
    for each in (repository, *repository.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    server = RestrictedServer(repository)
    try:
        server.await_ready()
        server.enter()
        assert psutil.Process(server.keeper().pid).uids().real == NOBODY
        assert server.status()["isolation"].startswith("no cgroup: ")
        assert small_request(server) == 200
        http = Http(server.address())
        assert http.infer("identity", x=("FP32", [ELEMENTS], [1.0] * ELEMENTS))[0] == 200
        http.close()
        os.kill(server.pid_outside(server.pid("identity")), signal.SIGKILL)
        server.await_event("worker_ready", "identity", 2)
        assert small_request(server) == 200
        assert server.stop() == 0, server.log()
        assert "Traceback" not in server.log()
    finally:
        server.remove()
        shutil.rmtree(repository)


POD_BYTES: Final = 600 << 20
MEMORY: Final = Path("/sys/fs/cgroup/memory")


class PodServer(Server):
    """Keeper, controller and gateways in a control group (v1) of 600 MiB, as in a pod with that limit."""

    @property
    def group(self) -> Path:
        return MEMORY / f"{self.root.name}_pod"

    def _command(self) -> list[str]:
        self.group.mkdir(exist_ok=True)
        (self.group / "memory.limit_in_bytes").write_text(str(POD_BYTES))
        script = f'echo 0 > {self.group}/cgroup.procs && exec "$@"'
        return ["sh", "-c", script, "sh", *super()._command()]

    def remove(self) -> None:
        """Remove the group as well."""
        group = self.group
        super().remove()
        group.rmdir()


@pytest.mark.root
@pytest.mark.cgroup1
@pytest.mark.skipif(not (MEMORY / "cgroup.procs").exists(), reason="there is no cgroup v1 memory hierarchy")
@pytest.mark.parametrize(("size", "status", "code"), [(510 << 20, 503, "no_buffer"), (900 << 20, 413, "too_large")])
def test_a_body_that_the_pod_cannot_hold_is_refused_and_nobody_is_killed(
    tmp_path: Path, size: int, status: int, code: str
) -> None:
    write_identity_onnx(tmp_path, "identity")
    sizes = ["--http-max-input-size", str(2 << 30), "--arena-size", str(8 << 30), "--max-request-bytes", str(4 << 30)]
    server = PodServer(tmp_path, *sizes)
    try:
        server.await_ready()
        answer = head_only(server, size)
        assert answer.startswith(f"HTTP/1.1 {status} "), answer
        assert f'"code":"{code}"' in answer
        assert small_request(server) == 200
        assert not server.events("gateway_exit")
        assert not server.events("worker_exit")
        assert server.stop() == 0
    finally:
        server.remove()


def small_request(server: Server) -> int:
    http = Http(server.address())
    try:
        return http.infer("identity", x=("FP32", [1], [1.0]))[0]
    finally:
        http.close()


def head_only(server: Server, size: int) -> str:
    """The answer to a request of which only the JSON before its binary tensor is sent."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [size // 4], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    head = (
        "POST /v2/models/identity/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(text) + size}\r\n\r\n"
    )
    with socket.create_connection(server.address(), timeout=EVENT_S) as client:
        client.sendall(head.encode() + text)
        return client.recv(1 << 16).decode()


def on_volume(folder: Path, prepare: str, command: list[str], *, uid: int | None = None) -> list[str]:
    """The command where `state` is a tmpfs of 64 KiB, prepared by a shell script."""
    (folder / "state").mkdir()
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid is not None else []
    script = f'mount -t tmpfs -o size=64k,mode=700 tmpfs {folder}/state && {{ {prepare}; }} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *user, *command]


@pytest.mark.root
@needs_namespaces
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        ("head -c 65536 /dev/zero > {0}/state/full || true", "cannot be written to: No space left on device"),
        ("mount -o remount,ro {0}/state", "cannot be opened: Read-only file system"),
        ("chmod 0777 {0}/state", "others may write to it (mode 0777): make it 0700, or name a directory below it, as"),
        ("chown 12345 {0}/state", "belongs to uid 12345, not to uid 0, which runs this server: change its owner, or"),
    ],
)
def test_a_volume_that_cannot_be_the_state_directory_is_refused_in_one_sentence(
    tmp_path: Path, prepare: str, reason: str
) -> None:
    text = refused(on_volume(tmp_path, prepare.format(tmp_path), serve_command(tmp_path)))
    assert f"{tmp_path}/state" in text
    assert reason in text


class VolumeServer(Server):
    """Its state directory is a folder of its own below a volume as Kubernetes makes it: root's, and open to all."""

    def _command(self) -> list[str]:
        volume = self.root / "state"
        volume.mkdir(exist_ok=True)
        command = [f"{each}/mmsup" if each == str(self.state_dir) else each for each in super()._command()]
        script = f'mount -t tmpfs -o mode=777 tmpfs {volume} && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


@pytest.mark.root
@needs_namespaces
def test_a_directory_below_a_volume_that_all_may_write_to_is_taken(tmp_path: Path) -> None:
    write_identity_onnx(tmp_path, "identity")
    assert_serves(VolumeServer(tmp_path))


def test_a_configuration_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "server.yaml"
    folder.mkdir()
    assert "server.yaml" in refused(serve_command(tmp_path, "--config", str(folder)))
