"""The spare: a gateway that has been started and waits, told nothing, for the place of one that ends.

What a start costs is imports, so it has them behind it; it holds no memory for tensors, accepts nobody and is one more
process that may die at any time, which nobody notices. Who is to be told what is not decided here (gateways.py).
"""

from __future__ import annotations

from typing import Final

from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gateways.gateway_process import GatewayProcess

STEADY_S: Final = 3.0
"""How long all places have served before a spare is started: it takes a second of CPU, and clients come first."""


class Standby:
    """The one there is, or the time until there is one."""

    def __init__(self, settings: Settings) -> None:
        self.gateway: GatewayProcess | None = None
        self._is_wanted = settings.spare_gateway
        self._due_s = float("inf")

    def is_due(self, now_s: float, *, is_steady: bool) -> bool:
        """Whether one is to be started now. `is_calm`: all places serve, and the server goes on."""
        self._due_s = min(self._due_s, now_s + STEADY_S) if is_steady else float("inf")
        return self._is_wanted and self.gateway is None and now_s >= self._due_s

    def start(self, gateway: GatewayProcess, generation: int) -> None:
        """Start this one as the spare."""
        self.gateway = gateway
        gateway.is_standby = True
        gateway.spawn(generation)

    def claim(self) -> GatewayProcess | None:
        """The spare, if it lives, for a place; there is none any more."""
        taken = self.gateway
        if taken is None or taken.process is None or taken.process.is_dead:
            return None
        self.gateway = None
        return taken

    def replace_older(self, before_s: float) -> None:
        """Another one in place of one that was started before that time."""
        if self.gateway is not None and self.gateway.spawned_s < before_s:
            self.gateway.kill("another one of the present code follows")

    def counts(self) -> dict[str, int]:
        """How many there are to be, and how many have come up."""
        is_ready = self.gateway is not None and self.gateway.is_standby_ready
        return {"wanted": int(self._is_wanted), "ready": int(is_ready)}
