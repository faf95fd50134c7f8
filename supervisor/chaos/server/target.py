"""The server that chaos is let loose on: its addresses, and what we may do to it.

Covers: questions to its control socket, its metrics, loads and unloads over HTTP, the means that there are.
Does not cover: starting one (own.py); requests to models (load.py).
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

from mmsup.supervisor.chaos.clients.http_client import (
    ConnectionRefused,
    ConnectionReset,
    HttpCall,
    HttpClient,
    HttpReply,
    MalformedReply,
)
from mmsup.supervisor.chaos.observe.history import RequestOutcome
from mmsup.supervisor.chaos.plan.catalog import SERVICE_MANAGER, FaultMethod, ModelRole
from mmsup.supervisor.chaos.server.service_manager import ServiceManager
from mmsup.supervisor.cli import control_client
from mmsup.supervisor.cli.control_client import Json

_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_MODEL_LABEL: Final = re.compile(r'model="([^"]*)"')
REQUEST_TIMEOUT_S: Final = 60.0
NO_REPLY: Final = HttpReply(0, {}, b"")
"""What a call to the server's own endpoints gives if there was no reply."""


class ServerOperator(Protocol):
    """Whoever looks after a server that does not always come back by itself."""

    def on_answer(self, model: str, outcome: RequestOutcome) -> None:
        """A model gave a right answer."""
        ...

    async def repair(self) -> None:
        """A fault is being brought about: returns when everything serves again, whatever that takes."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """One server. Without a runtime directory it may be anywhere."""

    client: HttpClient
    models: Mapping[str, ModelRole]
    runtime_dir: str = ""
    repository: Path | None = None
    """Where the models' files are, if they are ours to change."""
    isolation: str = ""
    metrics: HttpClient | None = None
    title: str = ""
    """What reports call it."""
    manager: ServiceManager | None = None
    """Who starts it again, if that is we."""
    operator: ServerOperator | None = None
    """Who looks after it, if it cannot be left to itself."""

    def capabilities(self) -> frozenset[str]:
        """What can be done to it: values of By, and capabilities of the machine."""
        found = {FaultMethod.REQUEST.value, FaultMethod.CLIENT.value}
        if self.runtime_dir:
            found |= {FaultMethod.WORKER.value, FaultMethod.SERVER_PROCESS.value}
        if self.repository is not None:
            found.add(FaultMethod.CONTROL.value)
        if self.manager is not None:
            found.add(SERVICE_MANAGER)
        if self.isolation.startswith("cgroup"):
            found |= {"caps", "freezer"} if os.geteuid() == 0 else {"caps"}
        return frozenset(found)

    async def ctl(self, verb: str, **arguments: object) -> Any:  # the result, by verb
        """One verb of the control socket, which may wait for a brain: in a thread."""
        return await asyncio.to_thread(control_client.call_server, self.runtime_dir, verb, arguments)

    async def status(self) -> Json:
        """`ctl status`."""
        found = await self.ctl("status")
        assert isinstance(found, dict), "a status is an object"
        return found

    async def call(self, path: str, method: str = "POST", body: bytes = b"{}") -> HttpReply:
        """One of the server's own endpoints; `NO_REPLY` if none comes."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self.client.send(HttpCall(path, body if method == "POST" else b"", (), method))
        except (ConnectionReset, ConnectionRefused, MalformedReply, TimeoutError):
            return NO_REPLY

    async def load(self, model: str) -> HttpReply:
        """Load or reload it; returns when that is decided."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/load")

    async def unload(self, model: str) -> HttpReply:
        """Unload it; returns when nothing is routed to it any more."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/unload")

    async def metric_samples(self) -> list[tuple[str, str, float]]:
        """The metrics: name, model (or empty), value. Empty if there are none to be had."""
        if self.metrics is None:
            return []
        try:
            reply = await self.metrics.send(HttpCall("/metrics", method="GET"))
        except (ConnectionReset, ConnectionRefused, MalformedReply):
            return []
        finally:
            self.metrics.close()
        return parse_samples(reply.body.decode("utf-8", "replace"))


def parse_samples(text: str) -> list[tuple[str, str, float]]:
    """The samples of a metrics page: name, model (or empty), value."""
    found = []
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            model = _MODEL_LABEL.search(sample[2] or "")
            found.append((sample[1], model[1] if model else "", float(sample[3])))
    return found
