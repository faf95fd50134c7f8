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

from mmsup.supervisor.chaos.clients.http_client import Call, Door, Nonsense, Refused, Reply, Reset
from mmsup.supervisor.chaos.observe.history import Outcome
from mmsup.supervisor.chaos.plan.catalog import MANAGER, By, Role
from mmsup.supervisor.chaos.server.service_manager import Manager
from mmsup.supervisor.cli import control_client
from mmsup.supervisor.cli.control_client import Json

_SAMPLE: Final = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_MODEL: Final = re.compile(r'model="([^"]*)"')
PATIENCE_S: Final = 60.0
NO_REPLY: Final = Reply(0, {}, b"")
"""What a call to the server's own endpoints gives if there was no reply."""


class Tender(Protocol):
    """Whoever looks after a server that does not always come back by itself."""

    def answered(self, model: str, outcome: Outcome) -> None:
        """A model gave a right answer."""
        ...

    async def tend(self) -> None:
        """A fault is being brought about: returns when everything serves again, whatever that takes."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """One server. Without a runtime directory it may be anywhere."""

    door: Door
    models: Mapping[str, Role]
    runtime_dir: str = ""
    repository: Path | None = None
    """Where the models' files are, if they are ours to change."""
    isolation: str = ""
    metrics: Door | None = None
    title: str = ""
    """What reports call it."""
    manager: Manager | None = None
    """Who starts it again, if that is we."""
    tender: Tender | None = None
    """Who looks after it, if it cannot be left to itself."""

    def means(self) -> frozenset[str]:
        """What can be done to it: values of By, and capabilities of the machine."""
        found = {By.REQUEST.value, By.CLIENT.value}
        if self.runtime_dir:
            found |= {By.WORKER.value, By.HOUSE.value}
        if self.repository is not None:
            found.add(By.CONTROL.value)
        if self.manager is not None:
            found.add(MANAGER)
        if self.isolation.startswith("cgroup"):
            found |= {"caps", "freezer"} if os.geteuid() == 0 else {"caps"}
        return frozenset(found)

    async def ctl(self, verb: str, **arguments: object) -> Any:  # the result, by verb
        """One verb of the control socket, which may wait for a brain: in a thread."""
        return await asyncio.to_thread(control_client.ask, self.runtime_dir, verb, arguments)

    async def status(self) -> Json:
        """`ctl status`."""
        found = await self.ctl("status")
        assert isinstance(found, dict), "a status is an object"
        return found

    async def call(self, path: str, method: str = "POST", body: bytes = b"{}") -> Reply:
        """One of the server's own endpoints; `NO_REPLY` if none comes."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.door.ask(Call(path, body if method == "POST" else b"", (), method))
        except (Reset, Refused, Nonsense, TimeoutError):
            return NO_REPLY

    async def load(self, model: str) -> Reply:
        """Load or reload it; returns when that is decided."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/load")

    async def unload(self, model: str) -> Reply:
        """Unload it; returns when nothing is routed to it any more."""
        return await self.call(f"/v2/repository/models/{quote(model, safe='')}/unload")

    async def samples(self) -> list[tuple[str, str, float]]:
        """The metrics: name, model (or empty), value. Empty if there are none to be had."""
        if self.metrics is None:
            return []
        try:
            reply = await self.metrics.ask(Call("/metrics", method="GET"))
        except (Reset, Refused, Nonsense):
            return []
        finally:
            self.metrics.close()
        return samples_of(reply.body.decode("utf-8", "replace"))


def samples_of(text: str) -> list[tuple[str, str, float]]:
    """The samples of a metrics page: name, model (or empty), value."""
    found = []
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is not None:
            model = _MODEL.search(sample[2] or "")
            found.append((sample[1], model[1] if model else "", float(sample[3])))
    return found
