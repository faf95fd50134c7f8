"""A real systemd, booted in a nest, with mmsup as its service: the unit as shipped.

A drop-in says only what a nest has not (default dependencies, a journal, an interpreter in its usual place) and writes
down how each run of the service ended.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from harness.nest import CHECKOUT, Nest, missing
from harness.server import EVENT_S, START_S, Http, Server, eventually

SYSTEMD: Final = "/lib/systemd/systemd"
INIT: Final = (
    "env", "-i", "container=nest", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    SYSTEMD, "--system", "--unit=nest.target", "--show-status=no", "--log-target=null",
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
    return missing() or ("" if os.access(SYSTEMD, os.X_OK) else f"no {SYSTEMD}")


class Booted:
    """A systemd that runs, until `remove`."""

    def __init__(self) -> None:
        self.nest = Nest(*INIT)
        try:
            self.nest.prove()
            eventually(lambda: self._asked("is-active", "nest.target") == "active", "systemd has started")
        except BaseException:
            self.nest.remove()
            raise

    def _asked(self, *words: str) -> str:
        return self.nest.run("systemctl", *words).stdout.strip()

    def systemctl(self, *words: str) -> str:
        """What it says; AssertionError with what it says if it fails."""
        done = self.nest.run("systemctl", *words)
        assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}{self.log()}"
        return done.stdout

    def show(self, unit: str) -> dict[str, str]:
        """All properties of a unit."""
        lines = self._asked("show", unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def install(self, name: str, more: str = "") -> None:
        """The shipped unit under a name, with the drop-in and `more` of one."""
        folder = self.nest.path(f"{UNITS}/{name}.service.d")
        folder.mkdir(exist_ok=True)
        (folder / "nest.conf").write_text(DROP_IN)
        (folder / "more.conf").write_text(more)
        shipped = (CHECKOUT / "systemd" / "mmsup.service").read_text()
        self.nest.path(f"{UNITS}/{name}.service").write_text(shipped)
        self.systemctl("daemon-reload")

    def log(self) -> str:
        """All that services have said."""
        log = self.nest.path(LOG)
        return log.read_text(errors="replace") if log.exists() else ""

    def processes(self) -> set[str]:
        """All that live in the nest beside systemd, by pid there."""
        return {each for each in os.listdir(self.nest.path("/proc")) if each.isdigit()} - {"1"}

    def remove(self) -> None:
        """End it, with all that it started."""
        self.nest.remove()


class Service(Server):
    """mmsup as the service of that name: asked as any server is, but started and ended by systemd."""

    def __init__(self, booted: Booted, name: str = "mmsup") -> None:
        self.booted = booted
        self.name = name
        self.runtime_dir = booted.nest.path(f"/run/{name}")
        self.repository = booted.nest.path(MODELS)
        self._addresses: dict[str, str] = {}

    def log(self) -> str:
        return self.booted.log()

    def http(self, name: str = "http") -> Http:
        return _NestHttp(self.booted.nest, self.address(name))

    def show(self) -> dict[str, str]:
        """All that systemd knows of it."""
        return self.booted.show(self.name)

    def await_shown(self, **wanted: str) -> Mapping[str, str]:
        """Its properties, as soon as these are so."""

        def looking() -> dict[str, str] | None:
            shown = self.show()
            return shown if all(shown[key] == value for key, value in wanted.items()) else None

        return eventually(looking, f"{wanted}: {self.log()[-2000:]}", START_S)

    def is_active(self) -> bool:
        """Whether systemd has heard READY, and no end since."""
        return self.show()["ActiveState"] == "active"

    def start(self) -> None:
        """Start it; returns when it has said READY."""
        self.booted.systemctl("reset-failed")
        self.booted.systemctl("start", self.name)

    def keeper(self) -> psutil.Process:
        """Its main process, as this machine sees it."""
        return psutil.Process(self.booted.nest.outside(int(self.show()["MainPID"])))

    def family(self) -> list[psutil.Process]:
        """The keeper and all below it."""
        keeper = self.keeper()
        return [keeper, *keeper.children(recursive=True)]

    def ends(self) -> list[str]:
        """How its runs ended so far, in systemd's words."""
        ends = self.booted.nest.path(f"/var/lib/{self.name}/ends")
        return ends.read_text().split() if ends.exists() else []

    def groups(self) -> Path:
        """The control group that systemd has delegated."""
        return self.booted.nest.path(f"/sys/fs/cgroup{self.show()['ControlGroup']}")


class _NestHttp(Http):
    def __init__(self, nest: Nest, address: tuple[str, int]) -> None:
        self.connection = _NestConnection(nest, address)


class _NestConnection(http.client.HTTPConnection):
    """Connects in the nest's network."""

    def __init__(self, nest: Nest, address: tuple[str, int]) -> None:
        super().__init__(*address, timeout=START_S)  # it may wait in the queue of a keeper that is to come
        self._nest = nest

    def connect(self) -> None:
        self.sock = self._nest.socket()
        self.sock.settimeout(START_S)
        self.sock.connect((self.host, self.port))


def end_of(processes: list[psutil.Process]) -> None:
    """Returns when all of them are gone."""
    _, alive = psutil.wait_procs(processes, timeout=EVENT_S)
    assert not alive, f"still there: {alive}"
