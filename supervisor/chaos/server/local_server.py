"""A server of chaos's own: fault models in a temporary folder, started and stopped as an operator would.

The server has its defaults, but for free ports and for the limits of models that are meant to hang or to eat memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.chaos.clients.http_client import Door
from mmsup.supervisor.chaos.plan import fault_model
from mmsup.supervisor.chaos.plan.catalog import Role
from mmsup.supervisor.chaos.server.service_manager import Manager
from mmsup.supervisor.chaos.server.target import Target
from mmsup.supervisor.cli.control_client import Json, NoServer, Refused, ask
from mmsup.supervisor.linux import cgroup_backend

START_S: Final = 120.0
STOP_S: Final = 60.0
LOOK_S: Final = 0.05
HANG_LIMIT: Final = "2s"
CAP: Final = "192MiB"
BATCH: Final = 8
"""What each model runs at once: so a death meets several requests."""
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
    return {"memory": CAP} | ({"hang_limit": HANG_LIMIT} if role == Role.HANGING else {})


def lay(repository: Path, name: str, role: Role, **given: Any) -> None:  # as `faultmodel.lay` has them
    """Put an edition of a model of this role into the repository."""
    fault_model.lay(repository, name, batch=BATCH, **{**settings(role), **given})


class Own:
    """A server, and its folder."""

    def __init__(self, models: Mapping[str, Role], python: str = sys.executable) -> None:
        """Lay out the models, start the server."""
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_chaos_"))
        self.repository = self.root / "models"
        self.runtime_dir = self.root / "run"
        self.state_dir = self.root / "state"
        for name, role in models.items():
            lay(self.repository, name, role)
        command = [
            *(python, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(self.repository)),
            *("--http-port", "0", "--metrics-port", "0"),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
        ]
        self.manager = Manager(command, self.root)

    async def ready(self) -> Json:
        """The status, when every model serves; NotStarted with the server's last words."""
        status = await until_ready(self.manager, str(self.runtime_dir))
        if status is None:
            raise NotStarted(f"the server did not come up:\n{self.said()[-2000:]}")
        return status

    async def stop(self) -> int:
        """SIGTERM, and the exit status; SIGKILL if it does not end."""
        return await self.manager.stop(STOP_S)

    def said(self) -> str:
        """All that it has printed."""
        return (self.root / "output").read_text(errors="replace")

    def remove(self) -> None:
        """Take everything away, whatever state it is in."""
        self.manager.close()
        cgroup_backend.leave(cgroup_backend.backend(cgroup_backend.top_name(str(self.state_dir))))
        shutil.rmtree(self.root)


async def until_ready(manager: Manager, runtime_dir: str) -> Json | None:
    """The status, when every model that is wanted serves; None if the server has ended, or takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while manager.status() is None:
                manager.listen()
                status = await asyncio.to_thread(_status, runtime_dir)
                if status is not None:
                    return status
                await asyncio.sleep(LOOK_S)
    return None


def _status(runtime_dir: str) -> Json | None:
    """None if there are models that are wanted and do not serve, or nobody to ask."""
    try:
        models = ask(runtime_dir, "list")["models"]
        is_up = models and all(each["state"] == "ready" for each in models if each["wanted"] == "up")
        return ask(runtime_dir, "status") if is_up else None
    except (NoServer, Refused):
        return None


@contextlib.asynccontextmanager
async def running(
    models: Mapping[str, Role],
    stray: Callable[[int], None],
    python: str = sys.executable,
) -> AsyncIterator[tuple[Own, Target]]:
    """A server of our own, ready; gone afterwards."""
    own = Own(models, python)
    try:
        target = target_of(await own.ready(), str(own.runtime_dir), models, stray)
        yield own, replace(target, repository=own.repository, manager=own.manager)
    finally:
        await asyncio.to_thread(own.remove)


def target_of(status: Json, runtime_dir: str, models: Mapping[str, Role], stray: Callable[[int], None]) -> Target:
    """A running server, as its status describes it."""
    addresses = status["addresses"]
    metrics = _door(addresses["metrics"], stray) if "metrics" in addresses else None
    return Target(
        _door(addresses["http"], stray),
        models,
        runtime_dir,
        isolation=status.get("isolation", ""),
        metrics=metrics,
        title=f"mmsup {status['version']}, {status.get('isolation', '')}",
    )


def _door(address: str, stray: Callable[[int], None]) -> Door:
    host, _, port = address.rpartition(":")
    return Door(host.strip("[]"), int(port), stray)
