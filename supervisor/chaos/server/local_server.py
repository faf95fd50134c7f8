"""Starts a server of fault models in a temporary folder, and stops it.

The server has its default settings, except for free ports, for the limits of models that hang or leak, and for a memory
budget that holds all models but one of those on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.clients.rpc_client import RpcClient
from mmsup.supervisor.chaos.plan import fault_model
from mmsup.supervisor.chaos.plan.catalog import GRPCIO_FRONT, ModelRole, partner
from mmsup.supervisor.chaos.server.service_manager import ServiceManager
from mmsup.supervisor.chaos.server.target import Target
from mmsup.supervisor.cli.ctl.control_client import Json, NoServer, ServerRefused, call_server
from mmsup.supervisor.linux import cgroup_backend

START_S: Final = 120.0
STOP_S: Final = 60.0
POLL_S: Final = 0.05
HANG_LIMIT: Final = "2s"
HANGING_DEADLINE: Final = "5s"
"""By which a loop ends, since it uses processor time and so is not hung."""
MEMORY_CAP_MIB: Final = 192
MEMORY_CAP: Final = f"{MEMORY_CAP_MIB}MiB"
MAX_BATCH: Final = 8
"""Of most models, so that a worker's death affects several requests."""
ROLE_ORDER: Final = (
    *(ModelRole.HEALTHY, ModelRole.CRASHY, ModelRole.LEAKY, ModelRole.HANGING),
    *(ModelRole.HEALTHY, ModelRole.CRASHY, ModelRole.HEALTHY, ModelRole.CHANGING),
    *(ModelRole.GROUPED, ModelRole.GROUPED, ModelRole.ON_DEMAND, ModelRole.ON_DEMAND),
    *(ModelRole.MOVABLE, ModelRole.MOVABLE, ModelRole.STREAMING, ModelRole.STREAMING),
    *(ModelRole.SEQUENCED, ModelRole.SEQUENCED, ModelRole.CALLING, ModelRole.ENSEMBLE, ModelRole.CALLED),
)
_PARTNERS: Final = (ModelRole.CALLING, ModelRole.ENSEMBLE, ModelRole.CALLED)
"""They come together."""
WORKER_MIB: Final = 28
"""What a worker holds at most that does not leak, its first requests included."""
TORCH_MIB: Final = 200
"""What one holds beyond that which has imported torch."""
SPARE_MIB: Final = 96
"""Of the memory budget: for reloads, which hold two workers for a while, and for zygotes."""


class ServerNotStarted(Exception):  # noqa: N818 - the reason why there is no run
    """The server did not become ready; the text has the end of its output."""


def model_roles(count: int, needed: Collection[ModelRole] = ()) -> dict[str, ModelRole]:
    """Names and roles of `count` models, in ROLE_ORDER: `healthy_1`, `crashy_1`, …; and of as many more as it takes to
    have the needed roles."""
    roles = [ROLE_ORDER[index % len(ROLE_ORDER)] for index in range(count)]
    missing = {each for role in needed for each in (_PARTNERS if role in _PARTNERS else (role,))} - {*roles}
    roles += [each for each in ROLE_ORDER if each in missing]
    found: dict[str, ModelRole] = {}
    for role in roles:
        number = sum(each == role for each in found.values()) + 1
        found[f"{role}_{number}"] = role
    return found


def has_batch_axis(name: str) -> bool:
    """Whether a model of that name batches. Every second one of a role runs its requests one by one instead, and so do
    those that answer in parts."""
    return not name.endswith(tuple("02468")) and not is_streamed(name)


def is_streamed(name: str) -> bool:
    """Whether a model of that name answers in parts."""
    return name.startswith(ModelRole.STREAMING)


def is_ensemble(name: str) -> bool:
    """Whether a model of that name is an ensemble, whose requests have all inputs."""
    return name.startswith(ModelRole.ENSEMBLE)


def write_model(repository: Path, name: str, role: ModelRole, **options: Any) -> None:  # of `write_fault_model`
    batch = MAX_BATCH if has_batch_axis(name) else 0
    if role == ModelRole.ENSEMBLE:
        steps = partner(name, ModelRole.CALLING), partner(name, ModelRole.CALLED)
        fault_model.write_ensemble(repository, name, *steps, batch=batch)
        return
    held = {"held_by": holding_library(name)} if role == ModelRole.MOVABLE else {}
    held |= {"callee": partner(name, ModelRole.CALLED)} if role == ModelRole.CALLING else {}
    settings = {**_SETTINGS[role], **held, **options}
    fault_model.write_fault_model(repository, name, batch=batch, streamed=is_streamed(name), **settings)


def holding_library(name: str) -> str:
    """Which library holds the weights of a model that sleeps in host memory. Every second one has torch, if it is
    installed."""
    return "torch" if not has_batch_axis(name) and importlib.util.find_spec("torch") is not None else "numpy"


def held_mib(models: Mapping[str, ModelRole]) -> int:
    """What each model on demand holds: more than leaks may add to what all others hold, so that two never fit."""
    roles = list(models.values())
    others = sum(each != ModelRole.ON_DEMAND for each in roles)
    others_mib = others * WORKER_MIB + sum(
        TORCH_MIB for name, role in models.items() if role == ModelRole.MOVABLE and holding_library(name) == "torch"
    )
    return others_mib + roles.count(ModelRole.LEAKY) * MEMORY_CAP_MIB + SPARE_MIB


def memory_budget(models: Mapping[str, ModelRole]) -> tuple[str, ...]:
    """Flags of a budget that holds all models but one of those on demand; none if there are none."""
    count = list(models.values()).count(ModelRole.ON_DEMAND)
    if not count:
        return ()
    held = held_mib(models)
    return "--memory-budget", f"{held + (count - 1) * (held + WORKER_MIB)}MiB"


_CAPPED: Final = {"memory": MEMORY_CAP}
_SETTINGS: Final[Mapping[ModelRole, Mapping[str, Any]]] = {  # YAML values
    ModelRole.HEALTHY: {},
    ModelRole.CRASHY: _CAPPED,
    ModelRole.LEAKY: _CAPPED,
    ModelRole.HANGING: {**_CAPPED, "hang_limit": HANG_LIMIT, "deadline": HANGING_DEADLINE, "load_timeout": "20s"},
    ModelRole.CHANGING: _CAPPED,
    ModelRole.GROUPED: {**_CAPPED, "group": "grouped", "hang_limit": HANG_LIMIT, "load_timeout": "20s"},
    ModelRole.STREAMING: {**_CAPPED, "hang_limit": HANG_LIMIT, "load_timeout": "20s"},
    ModelRole.ON_DEMAND: {"load": "on-demand"},
    ModelRole.MOVABLE: {"sleep": "host-memory", "hang_limit": HANG_LIMIT, "ttl": "never", "start": "exec"},
    ModelRole.CALLING: _CAPPED,
    ModelRole.CALLED: _CAPPED,
    ModelRole.SEQUENCED: {"sequences": {"strategy": "oldest", "slots": 64, "idle": "20s"}},
}
"""In the `mmsup.yaml` of a model, by its role."""


class LocalServer:
    """A server with its models, state and output in one temporary folder. The constructor starts it."""

    def __init__(
        self, models: Mapping[str, ModelRole], python: str = sys.executable, options: Sequence[str] = ()
    ) -> None:
        """`options`: more of them for `serve`."""
        self.root = Path(tempfile.mkdtemp(prefix="mmsup_chaos_"))
        self.repository = self.root / "models"
        self.runtime_dir = self.root / "run"
        self.state_dir = self.root / "state"
        for name, role in models.items():
            held = {"on_load": "leak", "on_load_amount": held_mib(models)} if role == ModelRole.ON_DEMAND else {}
            write_model(self.repository, name, role, **held)
        command = [
            *(python, "-m", "mmsup.supervisor.cli", "serve", "--model-repository", str(self.repository)),
            *("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"),
            *("--runtime-dir", str(self.runtime_dir), "--state-dir", str(self.state_dir)),
            *memory_budget(models),
            *options,
        ]
        self.manager = ServiceManager(command, self.root)

    async def wait_ready(self) -> Json:
        """The server's status, once every model is ready; else ServerNotStarted."""
        status = await wait_until_ready(self.manager, str(self.runtime_dir))
        if status is None:
            output = (self.root / "output").read_text(errors="replace")
            raise ServerNotStarted(f"the server did not come up:\n{output[-2000:]}")
        return status

    def remove(self) -> None:
        """Kill what still runs; remove control groups and files."""
        self.manager.close()
        cgroup_backend.tear_down(cgroup_backend.backend(cgroup_backend.top_name(str(self.state_dir))))
        shutil.rmtree(self.root)


async def wait_until_ready(manager: ServiceManager, runtime_dir: str) -> Json | None:
    """The server's status, once every wanted model is ready; None if it exits or is not ready within START_S."""
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
    """None unless every wanted model is ready and the control socket answers."""
    try:
        models = call_server(runtime_dir, "list")["models"]
        is_up = models and all(each["state"] in ("ready", "asleep") for each in models if each["wanted"] == "up")
        return call_server(runtime_dir, "status") if is_up else None
    except (NoServer, ServerRefused):
        return None


@contextlib.asynccontextmanager
async def running_server(
    models: Mapping[str, ModelRole], python: str = sys.executable, grpc_front: str = ""
) -> AsyncIterator[tuple[LocalServer, Target]]:
    """A server that runs during the block. `grpc_front`: what serves gRPC there, whose clients are made then."""
    server = LocalServer(models, python, ("--grpc-front", grpc_front) if grpc_front else ())
    try:
        status = await server.wait_ready()
        target = make_target(status, str(server.runtime_dir), models)
        if grpc_front:
            rpc = RpcClient(status["addresses"]["grpc"])
            target = replace(target, rpc=rpc, has_rpc_front=status["grpc_front"]["front"] == GRPCIO_FRONT)
        yield server, replace(target, repository=server.repository, manager=server.manager)
    finally:
        await asyncio.to_thread(server.remove)


def make_target(status: Json, runtime_dir: str, models: Mapping[str, ModelRole]) -> Target:
    """The target for a running server, by the addresses in its status."""
    addresses = status["addresses"]
    metrics = _client(addresses["metrics"]) if "metrics" in addresses else None
    return Target(
        _client(addresses["http"]),
        models,
        runtime_dir,
        isolation=status.get("isolation", ""),
        metrics=metrics,
        title=f"mmsup {status['version']}, {status.get('isolation', '')}",
    )


def _client(address: str) -> HttpClient:
    host, _, port = address.rpartition(":")
    return HttpClient(host.strip("[]"), int(port))
