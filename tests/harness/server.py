"""Runs a complete mmsup for a test: starts, queries and stops it as an operator would.

Its directories have the prefix `mmsup_test_` and are removed; its ports are ephemeral; it is ready when it sends the
notification that systemd would get.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness import combination
from harness.fd_store_double import FdStoreDouble
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.cli.ctl import control_client
from mmsup.supervisor.linux import cgroup_backend

START_S = 120.0
STOP_S = 60.0
EVENT_S = 30.0
"""Deadlines that are only reached if something is broken."""

T = TypeVar("T")
Json = dict[str, Any]


def eventually(attempt: Callable[[], T | None], what: str, deadline_s: float = EVENT_S) -> T:
    """Poll `attempt` until its result is true and return that; for states without an event to wait for."""
    began = time.monotonic()
    seen: object = None
    while time.monotonic() < began + deadline_s:
        seen = attempt()
        if seen:
            return seen
        pause(began)
    raise AssertionError(f"not within {deadline_s:.0f} s: {what}; last seen: {seen!r}")


def pause(began: float) -> None:
    """Sleep between two checks: 10 ms at first, up to 50 ms after a second, since each check takes processor time from
    the processes that are waited for. `began`: the monotonic time at which the wait began."""
    time.sleep(min(0.01 + (time.monotonic() - began) / 25, 0.05))


class Server:
    """One running server."""

    def __init__(
        self,
        repository: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        python: str = sys.executable,
        store: FdStoreDouble | None = None,
    ) -> None:
        """`python`: the interpreter, with an mmsup of its own. `store`: a double of the descriptor store of systemd;
        None if there is none."""
        self.python = python
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_test_"))
        self.runtime_dir = self.root / "run"
        self.state_dir = self.root / "state"
        self.repository = repository
        self._flags = flags
        self._env = dict(env or {})
        self.store = store
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self.root / "notify"))
        self.output = open(self.root / "output", "w+b")  # noqa: SIM115 - closed by remove()
        self._addresses: dict[str, str] = {}
        self.process = self._start()

    def _command(self) -> list[str]:
        return [
            *(self.python, "-m", "mmsup.supervisor.cli", "serve"),
            *("--model-repository", str(self.repository)),
            *("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
            *("--spare-gateway", "false"),  # it would come up in the middle of a test; those that want one say so
            *combination.flags,
            *self._flags,
        ]

    def _start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "NOTIFY_SOCKET": str(self.root / "notify"), **self._env}
        prefix, descriptors = self.store.handing_back() if self.store else ([], [])
        return subprocess.Popen(
            [*prefix, *self._command()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env=env,
            pass_fds=descriptors,
        )

    def start_again(self) -> None:
        """Run the same command again after the server has ended."""
        assert self.process.poll() is not None
        self.process = self._start()
        self._addresses = {}

    def second_start(self) -> subprocess.CompletedProcess[str]:
        """Run the same command beside the running server, to its end."""
        env = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        return subprocess.run(self._command(), capture_output=True, text=True, timeout=START_S, env=env, check=False)

    def await_ready(self) -> Server:
        """Wait for READY=1, the notification to systemd."""
        self._notify.settimeout(0.2)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(TimeoutError):
                if "READY=1" in self._next_notification():
                    if combination.forks() and "--zygotes" not in self._flags:
                        self.await_zygote()
                    return self
        raise AssertionError(f"not ready within {START_S:.0f} s:\n{self.log()}")

    def await_zygote(self, imports: str = "numpy", after: int = 0) -> Json:
        """Wait until workers that import this are forked; the row of `ctl ps`. `after`: of another one than this."""
        return eventually(
            lambda: next(
                (
                    each
                    for each in self.ctl("ps")["processes"]
                    if each["role"] == "zygote" and each["imports"] == imports
                    if each["state"] == "ready" and each["pid"] != after
                ),
                None,
            ),
            f"a zygote for {imports} is ready: {self.events()[-10:]}",
        )

    def _next_notification(self) -> list[str]:
        """The lines of the next sd_notify datagram."""
        data, descriptors, _, _ = socket.recv_fds(self._notify, 4096, 1)
        lines = data.decode().split("\n")
        if self.store is not None:
            self.store.receive(lines, descriptors)
        else:
            close_fds(descriptors)
        return lines

    def log(self) -> str:
        """Its output so far."""
        return (self.root / "output").read_text(errors="replace")

    # Asking.

    def ctl(self, verb: str, **arguments: object) -> Any:
        """Call one command of the control socket."""
        return control_client.call_server(str(self.runtime_dir), verb, arguments)

    def status(self) -> Json:
        """`ctl status --json`."""
        status = self.ctl("status")
        assert isinstance(status, dict)
        return status

    def model(self, name: str) -> Json:
        """The entry of one model in the status."""
        (found,) = [each for each in self.status()["models"] if each["name"] == name]
        assert isinstance(found, dict)
        return found

    def pids(self, name: str) -> list[int]:
        """Pids of the live workers of a model."""
        return [each["pid"] for each in self.model(name)["instances"] if each["pid"]]

    def pid(self, name: str) -> int:
        """The pid of the only worker of a model."""
        (pid,) = self.pids(name)
        return pid

    def events(self, event: str = "", model: str = "") -> list[Json]:
        """Events so far, optionally of one kind and one model."""
        try:
            events = self.ctl("events", count=10_000, model=model)["events"]
        except control_client.ServerRefused as refused:
            if refused.code != "unknown_model":
                raise
            return []
        return [each for each in events if not event or each["event"] == event]

    def await_event(self, event: str, model: str = "", count: int = 1) -> Json:
        """Wait for the `count`th event of a kind."""
        found = eventually(
            lambda: self.events(event, model)[count - 1 :][:1],
            f"event {event} number {count} of {model or 'any model'} in {self.events()[-10:]}",
        )
        return found[0]

    def await_state(self, name: str, state: str) -> Json:
        """Wait until the model is in that state; its status."""
        return eventually(
            lambda: found if (found := self.model(name))["state"] == state else None,
            f"{name} {state}: {self.model(name)}",
        )

    def gauge(self, name: str, **labels: str) -> float:
        """The sum of a metric over all series with these labels."""
        http = self.http("metrics")
        try:
            _, _, text = http.send("GET", "/metrics")
        finally:
            http.close()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.decode().splitlines()
            if re.match(rf"{name}(\{{|\s)", line) and all(each in line for each in wanted)
        )

    def address(self, name: str = "http") -> tuple[str, int]:
        """Host and port of a listener."""
        if not self._addresses:  # they hold for the keeper's life, and are known while the controller is away
            self._addresses = self.status()["addresses"]
        host, _, port = self._addresses[name].rpartition(":")
        return host, int(port)

    def http(self, name: str = "http") -> Http:
        """A new connection to a listener."""
        return Http(self.address(name))

    # Ending.

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)

    def remove(self) -> None:
        """Kill it if it runs, and remove its directories and control groups."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_S)
        backend = cgroup_backend.backend(cgroup_backend.top_name(str(self.state_dir)))
        assert cgroup_backend.tear_down(backend), "a control group does not empty"
        self.output.close()
        self._notify.close()
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.root)


@contextlib.contextmanager
def serving(
    repository: Path, *flags: str, env: Mapping[str, str] | None = None, python: str = sys.executable
) -> Iterator[Server]:
    """A ready server, removed at the end of the block."""
    server = Server(repository, *flags, env=env, python=python)
    try:
        yield server.await_ready()
    except BaseException:
        print(server.log())
        raise
    finally:
        server.remove()


class Http:
    """One keep-alive connection."""

    def __init__(self, address: tuple[str, int], timeout_s: float = EVENT_S) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=timeout_s)

    def send(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers, body. Head and body leave together: a request that is counted as open is at its worker, or
        waits for one, and is not still being received."""
        if self.connection.sock is None:
            self.connection.connect()
        sock = self.connection.sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.connection.request(method, path, body, dict(headers or {}))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        response = self.connection.getresponse()
        return response.status, response.headers, response.read()

    def json(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and the body's JSON."""
        status, _, text = self.send(method, path, None if body is None else json.dumps(body))
        return status, json.loads(text) if text else None

    def infer(self, model: str, **inputs: tuple[str, list[int], list[Any]]) -> tuple[int, Any]:
        """JSON inference: name=(datatype, shape, data)."""
        tensors = [
            {"name": name, "datatype": datatype, "shape": shape, "data": data}
            for name, (datatype, shape, data) in inputs.items()
        ]
        return self.json("POST", f"/v2/models/{model}/infer", {"inputs": tensors})

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
