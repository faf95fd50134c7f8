"""The standby gateway: a process that has been started and waits, unconfigured, for the seat of one that exits.

Its imports are done, which is what a start costs. It holds no memory for tensors and accepts no connection; if it dies,
nothing but the next standby follows (docs/decisions/012-spare.md).
"""

from __future__ import annotations

from typing import Final

from mmsup.ipc.memory.status_page import Activity
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gateways.gateway_process import GatewayProcess, GatewayRole

STEADY_S: Final = 3.0
"""How long all seats have served before a standby is started: that takes a second of CPU, and clients come first."""


class Standby:
    """The standby gateway that there is, or the time until one is started."""

    def __init__(self, settings: Settings) -> None:
        self.gateway: GatewayProcess | None = None
        self._is_wanted = settings.spare_gateway
        self._due_s = float("inf")

    def is_due(self, now_s: float, *, is_steady: bool) -> bool:
        """Whether one is to be started now. `is_steady`: all seats serve, and the server is not stopping."""
        self._due_s = min(self._due_s, now_s + STEADY_S) if is_steady else float("inf")
        return self._is_wanted and self.gateway is None and now_s >= self._due_s

    def start(self, gateway: GatewayProcess, generation: int) -> None:
        self.gateway = gateway
        gateway.role = GatewayRole.STANDBY
        gateway.spawn(generation)

    def claim(self) -> GatewayProcess | None:
        """The standby, if it lives, for a seat; there is none afterwards."""
        claimed = self.gateway
        if claimed is None or claimed.process is None or claimed.process.is_dead:
            return None
        self.gateway = None
        return claimed

    def replace_older(self, before_s: float) -> None:
        """Have another one follow if it was started before that time."""
        if self.gateway is not None and self.gateway.spawned_s < before_s:
            self.gateway.kill("another one of the present code follows")

    def is_ready(self) -> bool:
        process = self.gateway.process if self.gateway is not None else None
        return process is not None and process.progress().activity is Activity.STANDBY

    def counts(self) -> dict[str, int]:
        """How many there are to be, and how many have come up; JSON of the status."""
        return {"wanted": int(self._is_wanted), "ready": int(self.is_ready())}
