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

from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.plan import fault_model
from mmsup.supervisor.chaos.plan.catalog import ModelRole
from mmsup.supervisor.chaos.server.service_manager import ServiceManager
from mmsup.supervisor.chaos.server.target import Target
from mmsup.supervisor.cli.control_client import Json, NoServer, ServerRefused, call_server
from mmsup.supervisor.linux import cgroup_backend

START_S: Final = 120.0
STOP_S: Final = 60.0
POLL_S: Final = 0.05
HANG_LIMIT: Final = "2s"
MEMORY_CAP: Final = "192MiB"
MAX_BATCH: Final = 8
"""What each model runs at once: so a death meets several requests."""
ROLE_ORDER: Final = (
    ModelRole.HEALTHY, ModelRole.CRASHY, ModelRole.LEAKY, ModelRole.HANGING, ModelRole.HEALTHY, ModelRole.CRASHY, ModelRole.HEALTHY, ModelRole.CHANGING,
)  # fmt: skip


class ServerNotStarted(Exception):  # noqa: N818 - the end of the run before it began
    """The server did not come up, with what it said."""


def model_roles(count: int) -> dict[str, ModelRole]:
    """`count` models by name, of every role in turn: `healthy_1`, `crashy_1`, …"""
    found: dict[str, ModelRole] = {}
    for index in range(count):
        role = ROLE_ORDER[index % len(ROLE_ORDER)]
        number = sum(each == role for each in found.values()) + 1
        found[f"{role}_{number}"] = role
    return found


def model_settings(role: ModelRole) -> dict[str, Any]:  # as YAML has them
    """What a model of this role has in its `mmsup.yaml`."""
    if role == ModelRole.HEALTHY:
        return {}
    return {"memory": MEMORY_CAP} | ({"hang_limit": HANG_LIMIT} if role == ModelRole.HANGING else {})


def write_model(repository: Path, name: str, role: ModelRole, **given: Any) -> None:  # as `faultmodel.lay` has them
    """Put an edition of a model of this role into the repository."""
    fault_model.write_fault_model(repository, name, batch=MAX_BATCH, **{**model_settings(role), **given})


class LocalServer:
    """A server, and its folder."""

    def __init__(self, models: Mapping[str, ModelRole], python: str = sys.executable) -> None:
        """Lay out the models, start the server."""
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_chaos_"))
        self.repository = self.root / "models"
        self.runtime_dir = self.root / "run"
        self.state_dir = self.root / "state"
        for name, role in models.items():
            write_model(self.repository, name, role)
        command = [
            *(python, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(self.repository)),
            *("--http-port", "0", "--metrics-port", "0"),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
        ]
        self.manager = ServiceManager(command, self.root)

    async def wait_ready(self) -> Json:
        """The status, when every model serves; NotStarted with the server's last words."""
        status = await wait_until_ready(self.manager, str(self.runtime_dir))
        if status is None:
            raise ServerNotStarted(f"the server did not come up:\n{self.output()[-2000:]}")
        return status

    async def stop(self) -> int:
        """SIGTERM, and the exit status; SIGKILL if it does not end."""
        return await self.manager.stop(STOP_S)

    def output(self) -> str:
        """All that it has printed."""
        return (self.root / "output").read_text(errors="replace")

    def remove(self) -> None:
        """Take everything away, whatever state it is in."""
        self.manager.close()
        cgroup_backend.tear_down(cgroup_backend.backend(cgroup_backend.top_name(str(self.state_dir))))
        shutil.rmtree(self.root)


async def wait_until_ready(manager: ServiceManager, runtime_dir: str) -> Json | None:
    """The status, when every model that is wanted serves; None if the server has ended, or takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_S):
            while manager.status() is None:
                manager.read_notifications()
                status = await asyncio.to_thread(_ready_status, runtime_dir)
                if status is not None:
                    return status
                await asyncio.sleep(POLL_S)
    return None


def _ready_status(runtime_dir: str) -> Json | None:
    """None if there are models that are wanted and do not serve, or nobody to ask."""
    try:
        models = call_server(runtime_dir, "list")["models"]
        is_up = models and all(each["state"] == "ready" for each in models if each["wanted"] == "up")
        return call_server(runtime_dir, "status") if is_up else None
    except (NoServer, ServerRefused):
        return None


@contextlib.asynccontextmanager
async def running_server(
    models: Mapping[str, ModelRole],
    on_unexpected: Callable[[int], None],
    python: str = sys.executable,
) -> AsyncIterator[tuple[LocalServer, Target]]:
    """A server of our own, ready; gone afterwards."""
    own = LocalServer(models, python)
    try:
        target = make_target(await own.wait_ready(), str(own.runtime_dir), models, on_unexpected)
        yield own, replace(target, repository=own.repository, manager=own.manager)
    finally:
        await asyncio.to_thread(own.remove)


def make_target(
    status: Json, runtime_dir: str, models: Mapping[str, ModelRole], on_unexpected: Callable[[int], None]
) -> Target:
    """A running server, as its status describes it."""
    addresses = status["addresses"]
    metrics = _client(addresses["metrics"], on_unexpected) if "metrics" in addresses else None
    return Target(
        _client(addresses["http"], on_unexpected),
        models,
        runtime_dir,
        isolation=status.get("isolation", ""),
        metrics=metrics,
        title=f"mmsup {status['version']}, {status.get('isolation', '')}",
    )


def _client(address: str, stray: Callable[[int], None]) -> HttpClient:
    host, _, port = address.rpartition(":")
    return HttpClient(host.strip("[]"), int(port), stray)
