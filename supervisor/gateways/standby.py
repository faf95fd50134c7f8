"""The standby gateway: a process that has been started and waits, unconfigured, for the seat of one that exits.

Its imports are done, which is what a start costs. It holds no memory for tensors and accepts no connection; if it dies,
nothing but the next standby follows (docs/decisions/012-spare.md).
"""

from __future__ import annotations

from typing import Final

from mmsup.ipc.memory.status_page import Activity
from mmsup.supervisor.gateways.gateway_process import GatewayContext, GatewayProcess, GatewayRole
from mmsup.supervisor.processes.idle_start import SPARE_S, IdleStart

STEADY_S: Final = 3.0
"""How long all seats have served before a standby is started: that takes a second of CPU, and clients come first."""


class Standby:
    """The standby gateway that there is, or the time until one is started."""

    def __init__(self, context: GatewayContext) -> None:
        self.gateway: GatewayProcess | None = None
        self._context = context
        self._idle_start: IdleStart | None = None
        self._is_wanted = context.settings.spare_gateway
        self._due_s = float("inf")

    def is_due(self, now_s: float, *, is_steady: bool) -> bool:
        """Whether one is to be started now. `is_steady`: all seats serve, and the server is not stopping."""
        self._due_s = min(self._due_s, now_s + STEADY_S) if is_steady else float("inf")
        return self._is_wanted and self.gateway is None and now_s >= self._due_s

    def start(self, gateway: GatewayProcess, generation: int) -> None:
        self.gateway = gateway
        gateway.role = GatewayRole.STANDBY
        gateway.spawn(generation)

    def check_start(self) -> None:
        """Let it compete for the processor once it has come up, or has waited for too long."""
        idle, process = self._context.idle, self.gateway.process if self.gateway is not None else None
        if idle is None or process is None or process.is_dead:
            self.close()
            return
        if self._idle_start is None or self._idle_start.pid != process.pid:
            self.close()
            pid = process.pid
            self._idle_start = IdleStart(SPARE_S, lambda: idle.move_out((pid,)), pid)
        if self.is_ready():
            self._idle_start.end()

    def close(self) -> None:
        if self._idle_start is not None:
            self._idle_start.cancel()

    def claim(self) -> GatewayProcess | None:
        """The standby, if it lives, for a seat; there is none afterwards."""
        claimed = self.gateway
        if claimed is None or claimed.process is None or claimed.process.is_dead:
            return None
        if self._context.idle is not None:
            self._context.idle.move_out((claimed.process.pid,))  # before it is told to serve
        self.close()
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
