"""A real systemd, booted in a sandbox, with mmsup as its service: the unit as shipped.

A drop-in supplies only what a sandbox lacks (default dependencies, a journal, an interpreter in its usual place) and
records how each run of the service ended.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from harness.server import EVENT_S, START_S, Http, Server, eventually
from harness.systemd.sandbox import CHECKOUT, Sandbox, missing_requirement

SYSTEMD: Final = "/lib/systemd/systemd"
INIT: Final = (
    "env", "-i", "container=sandbox", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    SYSTEMD, "--system", "--unit=sandbox.target", "--show-status=no", "--log-target=null",
)  # fmt: skip
UNITS: Final = "/etc/systemd/system"
MODELS: Final = "/srv/mmsup/models"
LOG: Final = "/run/mmsup.log"
DROP_IN: Final = f"""
[Unit]
DefaultDependencies=no
[Service]
Environment=LD_LIBRARY_PATH=/opt/python/lib
StandardOutput=append:{LOG}
StandardError=append:{LOG}
ExecStopPost=/bin/sh -c 'echo $$SERVICE_RESULT >>$$STATE_DIRECTORY/ends'
"""


def cannot_boot() -> str:
    """Why no systemd can be booted here; empty if one can."""
    return missing_requirement() or ("" if os.access(SYSTEMD, os.X_OK) else f"no {SYSTEMD}")


class SystemdSandbox:
    """A running systemd, until `remove`."""

    def __init__(self) -> None:
        self.sandbox = Sandbox(*INIT)
        try:
            self.sandbox.verify()
            eventually(lambda: self._asked("is-active", "sandbox.target") == "active", "systemd has started")
        except BaseException:
            self.sandbox.remove()
            raise

    def _asked(self, *words: str) -> str:
        return self.sandbox.run("systemctl", *words).stdout.strip()

    def systemctl(self, *words: str) -> str:
        """The output of a systemctl command; AssertionError with its error output if it fails."""
        done = self.sandbox.run("systemctl", *words)
        assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}{self.log()}"
        return done.stdout

    def show(self, unit: str) -> dict[str, str]:
        """All properties of a unit."""
        lines = self._asked("show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def install(self, name: str, more: str = "") -> None:
        """Install the shipped unit under a name, with the drop-in and `more` settings."""
        folder = self.sandbox.path(f"{UNITS}/{name}.service.d")
        folder.mkdir(exist_ok=True)
        (folder / "sandbox.conf").write_text(DROP_IN)
        (folder / "more.conf").write_text(more)
        shipped = (CHECKOUT / "systemd" / "mmsup.service").read_text()
        self.sandbox.path(f"{UNITS}/{name}.service").write_text(shipped)
        self.systemctl("daemon-reload")

    def log(self) -> str:
        """The output of all services."""
        log = self.sandbox.path(LOG)
        return log.read_text(errors="replace") if log.exists() else ""

    def processes(self) -> set[str]:
        """Pids, inside, of all processes but systemd."""
        return {each for each in os.listdir(self.sandbox.path("/proc")) if each.isdigit()} - {"1"}

    def remove(self) -> None:
        """Kill it with all that it has started."""
        self.sandbox.remove()


class SystemdService(Server):
    """mmsup as a service: queried as any server, but started and stopped by systemd."""

    def __init__(self, booted: SystemdSandbox, name: str = "mmsup") -> None:
        self.systemd = booted
        self.name = name
        self.runtime_dir = booted.sandbox.path(f"/run/{name}")
        self.repository = booted.sandbox.path(MODELS)
        self._addresses: dict[str, str] = {}

    def log(self) -> str:
        return self.systemd.log()

    def http(self, name: str = "http") -> Http:
        return _SandboxHttp(self.systemd.sandbox, self.address(name))

    def show(self) -> dict[str, str]:
        """All properties of its unit."""
        return self.systemd.show(self.name)

    def await_shown(self, **wanted: str) -> Mapping[str, str]:
        """Wait until its properties have these values; all properties."""

        def looking() -> dict[str, str] | None:
            shown = self.show()
            return shown if all(shown[key] == value for key, value in wanted.items()) else None

        return eventually(looking, f"{wanted}: {self.log()[-2000:]}", START_S)

    def is_active(self) -> bool:
        """Whether systemd has received READY and the service still runs."""
        return self.show()["ActiveState"] == "active"

    def start(self) -> None:
        """Start it; returns when it has sent READY."""
        self.systemd.systemctl("reset-failed")
        self.systemd.systemctl("start", self.name)

    def keeper(self) -> psutil.Process:
        """Its main process, by host pid."""
        return psutil.Process(self.systemd.sandbox.host_pid(int(self.show()["MainPID"])))

    def all_processes(self) -> list[psutil.Process]:
        """The keeper and all its descendants."""
        keeper = self.keeper()
        return [keeper, *keeper.children(recursive=True)]

    def run_results(self) -> list[str]:
        """The SERVICE_RESULT of each run that has ended."""
        ends = self.systemd.sandbox.path(f"/var/lib/{self.name}/ends")
        return ends.read_text().split() if ends.exists() else []

    def groups(self) -> Path:
        """The control group that systemd has delegated to it."""
        return self.systemd.sandbox.path(f"/sys/fs/cgroup{self.show()['ControlGroup']}")


class _SandboxHttp(Http):
    def __init__(self, sandbox: Sandbox, address: tuple[str, int]) -> None:
        self.connection = _SandboxConnection(sandbox, address)


class _SandboxConnection(http.client.HTTPConnection):
    """Connects in the sandbox's network."""

    def __init__(self, sandbox: Sandbox, address: tuple[str, int]) -> None:
        super().__init__(*address, timeout=START_S)  # it may wait in the queue of a keeper that is to come
        self._sandbox = sandbox

    def connect(self) -> None:
        self.sock = self._sandbox.socket()
        self.sock.settimeout(START_S)
        self.sock.connect((self.host, self.port))


def await_end(processes: list[psutil.Process]) -> None:
    """Wait until all of these processes have ended."""
    _, alive = psutil.wait_procs(processes, timeout=EVENT_S)
    assert not alive, f"still there: {alive}"
