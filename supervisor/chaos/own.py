"""A server of chaos's own: fault models in a temporary folder, started and stopped as an operator would.

The server has its defaults, but for free ports and for the limits of models that are meant to hang or to eat memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final

from mmsup.supervisor import cgroup
from mmsup.supervisor.chaos import faultmodel
from mmsup.supervisor.chaos.exchange import Door
from mmsup.supervisor.chaos.faults import Role
from mmsup.supervisor.chaos.target import Target
from mmsup.supervisor.client import Json, NoServer, Refused, ask

START_S: Final = 120.0
STOP_S: Final = 60.0
LOOK_S: Final = 0.05
HANG_LIMIT: Final = "2s"
CAP: Final = "192MiB"
TURNS: Final = (
    Role.HEALTHY, Role.CRASHY, Role.LEAKY, Role.HANGING, Role.HEALTHY, Role.CRASHY, Role.HEALTHY, Role.CHANGING,
)  # fmt: skip


class NotStarted(Exception):  # noqa: N818 - the end of the run before it began
    """The server did not come up, with what it said."""


def roles(count: int) -> dict[str, Role]:
    """`count` models by name, of every role in turn: `healthy_1`, `crashy_1`, …"""
    found: dict[str, Role] = {}
    for index in range(count):
        role = TURNS[index % len(TURNS)]
        number = sum(each == role for each in found.values()) + 1
        found[f"{role}_{number}"] = role
    return found


def settings(role: Role) -> dict[str, Any]:  # as YAML has them
    """What a model of this role has in its `mmsup.yaml`."""
    if role == Role.HEALTHY:
        return {}
    return {"hang_limit": HANG_LIMIT, "memory": CAP}


class Own:
    """The process of the server, and its folder."""

    def __init__(self, python: str = sys.executable) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_chaos_"))
        self.repository = self.root / "models"
        self.runtime_dir = self.root / "run"
        self.state_dir = self.root / "state"
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self, models: Mapping[str, Role]) -> None:
        """Lay out the models, start the server."""
        for name, role in models.items():
            faultmodel.lay(self.repository, name, **settings(role))
        command = [
            *(self._python, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(self.repository)),
            *("--http-port", "0", "--metrics-port", "0"),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
        ]
        self._output = (self.root / "output").open("wb")
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, close_fds=True
        )

    async def ready(self) -> Json:
        """The status, when every model serves; NotStarted with the server's last words."""
        assert self._process is not None, "it was not started"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while self._process.poll() is None:
                    status = await asyncio.to_thread(self._status)
                    if status and all(each["state"] == "ready" for each in status["models"]):
                        return status
                    await asyncio.sleep(LOOK_S)
        raise NotStarted(f"the server did not come up:\n{self.said()[-2000:]}")

    async def stop(self) -> int:
        """SIGTERM, and the exit status; SIGKILL if it does not end."""
        assert self._process is not None, "it was not started"
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return await asyncio.to_thread(self._process.wait)

    def said(self) -> str:
        """All that it has printed."""
        return (self.root / "output").read_text(errors="replace")

    def remove(self) -> None:
        """Take everything away, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        cgroup.leave(cgroup.backend(cgroup.top_name(str(self.state_dir))))
        if self._output is not None:
            self._output.close()
        shutil.rmtree(self.root)

    @property
    def pid(self) -> int:
        """Its keeper."""
        assert self._process is not None, "it was not started"
        return self._process.pid

    def _status(self) -> Json | None:
        try:
            found = ask(str(self.runtime_dir), "status")
        except (NoServer, Refused):
            return None
        return found if found["models"] else None


@contextlib.asynccontextmanager
async def running(
    models: Mapping[str, Role],
    stray: Callable[[int], None],
    python: str = sys.executable,
) -> AsyncIterator[tuple[Own, Target]]:
    """A server of our own, ready; gone afterwards."""
    own = Own(python)
    try:
        own.start(models)
        yield own, target_of(await own.ready(), str(own.runtime_dir), models, stray, own.repository)
    finally:
        await asyncio.to_thread(own.remove)


def target_of(
    status: Json, runtime_dir: str, models: Mapping[str, Role], stray: Callable[[int], None], repository: Path | None
) -> Target:
    """A running server, as its status describes it."""
    addresses = status["addresses"]
    metrics = _door(addresses["metrics"], stray) if "metrics" in addresses else None
    return Target(
        _door(addresses["http"], stray),
        models,
        runtime_dir,
        repository,
        status.get("isolation", ""),
        metrics,
        status["keeper"]["pid"],
        f"mmsup {status['version']}, {status.get('isolation', '')}",
    )


def _door(address: str, stray: Callable[[int], None]) -> Door:
    host, _, port = address.rpartition(":")
    return Door(host.strip("[]"), int(port), stray)
