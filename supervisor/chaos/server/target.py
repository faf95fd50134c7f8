"""The server under test: its addresses, its control socket, metrics, loads and unloads, and which faults are possible.

Does not cover: starting one (local_server.py); inference requests (clients/load.py).
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from mmsup.supervisor.chaos.clients.http_client import HttpCall, HttpClient, HttpReply, RequestFailed
from mmsup.supervisor.chaos.clients.rpc_client import RpcClient
from mmsup.supervisor.chaos.observe.history import RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import GRPCIO_FRONT, SERVICE_MANAGER, FaultMethod, ModelRole
from mmsup.supervisor.chaos.server.service_manager import ServiceManager
from mmsup.supervisor.cli.ctl import control_client
from mmsup.supervisor.cli.ctl.control_client import Json

_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_MODEL_LABEL: Final = re.compile(r'model="([^"]*)"')
REQUEST_TIMEOUT_S: Final = 60.0
NO_REPLY: Final = HttpReply(0, {}, b"")
"""Result of a call to the server's own endpoints that got no reply."""


class ServerOperator(Protocol):
    """Restarts a server that does not always recover by itself."""

    def on_answer(self, model: str, outcome: RequestOutcome) -> None:
        """Called for every right answer of a model."""

    async def repair(self) -> None:
        """Called when a fault is injected; returns when every model serves again, restarting the server if needed."""


@dataclass(frozen=True, slots=True)
class Target:
    """One server. Without a runtime directory only its HTTP address is known."""

    client: HttpClient
    models: Mapping[str, ModelRole]
    runtime_dir: str = ""
    repository: Path | None = None
    """The models' files, if they may be changed."""
    isolation: str = ""
    metrics: HttpClient | None = None
    title: str = ""
    """Its name in reports."""
    manager: ServiceManager | None = None
    """Set if this package started it."""
    operator: ServerOperator | None = None
    """Set if it does not recover by itself."""
    rpc: RpcClient | None = None
    """Set if it is to get calls over gRPC as well."""
    has_rpc_front: bool = False
    """Whether a process of its own takes them."""

    def capabilities(self) -> frozenset[str]:
        """Which faults are possible: values of FaultMethod and of `FaultClass.requires`."""
        found = {FaultMethod.REQUEST.value, FaultMethod.CLIENT.value}
        if self.runtime_dir:
            found |= {FaultMethod.WORKER.value, FaultMethod.SERVER_PROCESS.value}
        if self.repository is not None:
            found.add(FaultMethod.CONTROL.value)
        if self.has_rpc_front:
            found.add(GRPCIO_FRONT)
        if self.manager is not None:
            found.add(SERVICE_MANAGER)
        if self.isolation.startswith("cgroup"):
            found |= {"caps", "freezer"} if os.geteuid() == 0 else {"caps"}
        return frozenset(found)

    async def close(self) -> None:
        """Close the clients' connections; the next requests make other ones."""
        self.client.close()
        if self.rpc is not None:
            await self.rpc.close()

    async def status(self) -> Json:
        """`ctl status`; in a thread, because it may wait for a controller that restarts."""
        found: Any = await asyncio.to_thread(control_client.call_server, self.runtime_dir, "status")
        assert isinstance(found, dict), "a status is an object"
        return found

    async def call(self, path: str, method: str = "POST", body: bytes = b"{}") -> HttpReply:
        """Call one of the server's own endpoints; `NO_REPLY` if the connection fails or nothing comes."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self.client.send(HttpCall(path, body if method == "POST" else b"", (), method))
        except (RequestFailed, TimeoutError):
            return NO_REPLY

    async def load(self, model: str) -> HttpReply:
        """Load or reload a model; returns when it has succeeded or failed."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/load")

    async def unload(self, model: str) -> HttpReply:
        """Unload a model; returns when no request is routed to it any more."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/unload")

    async def by_hand(self, model: str, *verbs: str) -> str:
        """`ctl sleep MODEL`, `ctl wake MODEL`, one after the other; why one was refused, if it was."""
        try:
            for verb in verbs:
                await asyncio.to_thread(control_client.call_server, self.runtime_dir, verb, {"name": model})
        except (control_client.ServerRefused, control_client.NoServer) as refused:
            return str(refused)
        return ""

    async def worker_states(self, model: str) -> list[str]:
        """Of the workers of a model; none while nobody answers."""
        try:
            models = (await self.status())["models"]
        except (control_client.ServerRefused, control_client.NoServer):
            return []
        return [each["state"] for entry in models if entry["name"] == model for each in entry["instances"]]

    async def metric_samples(self) -> list[tuple[str, str, float]]:
        """The metrics: name, model (or empty), value. Empty if they cannot be read."""
        if self.metrics is None:
            return []
        try:
            reply = await self.metrics.send(HttpCall("/metrics", method="GET"))
        except RequestFailed:
            return []
        finally:
            self.metrics.close()
        return parse_samples(reply.body.decode("utf-8", "replace"))


def parse_samples(text: str) -> list[tuple[str, str, float]]:
    """Parse the Prometheus text format: name, model (or empty), value."""
    found = []
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            model = _MODEL_LABEL.search(sample[2] or "")
            found.append((sample[1], model[1] if model else "", float(sample[3])))
    return found
