"""Checks all gateways four times a second: kills those whose event loop stands, and starts a standby when due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.supervisor.gateways.gateway_process import GatewayProcess, GatewayRole
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gateways.rpc_front import RpcFront

CHECK_INTERVAL_S: Final = 0.25
START_S: Final = 60.0
STALE_S: Final = 2.0
"""Its heartbeat comes every 100 ms. A kill resets every connection, and a busy machine wakes nobody on time."""
STANDBY_STALE_S: Final = 5.0
"""A standby's comes every 500 ms, and nobody waits for it: a busy machine is not to start another one."""


class GatewayChecks:
    def __init__(self, pool: GatewayPool, rpc_front: RpcFront, is_server_up: Callable[[], bool]) -> None:
        """`is_server_up`: READY has been announced; no standby is started before."""
        self._pool = pool
        self._rpc_front = rpc_front
        self._is_server_up = is_server_up
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the gateways that have no process, and check all of them from now on."""
        pool = self._pool
        for gateway in pool.processes():
            if gateway not in pool.unseated and gateway.process is None and not gateway.timer.is_running:
                pool.respawn(gateway)
        for gateway in list(pool.unseated):
            if gateway.process is None:
                pool.unseated.remove(gateway)
            else:
                gateway.retire()  # one that came up to replace another: which one, the controller before knew
        self._rpc_front.open()
        self._check()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        pool, now_s = self._pool, time.monotonic()
        for gateway in pool.processes():
            if gateway.process is not None and not gateway.process.is_dead:
                _kill_if_stuck(gateway, gateway.process.progress(), now_s)
        self._rpc_front.check(now_s)
        pool.standby.check_start()
        if pool.unseated:
            pool.on_change()  # that one has come up, only its status page says
        is_steady = (
            self._is_server_up() and not pool.context.is_stopping and all(each.is_serving for each in pool.seats)
        )
        if pool.standby.is_due(now_s, is_steady=is_steady) and (standby := pool.new_gateway()) is not None:
            pool.standby.start(standby, pool.reserve_generation())
            pool.on_change()
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)


def _kill_if_stuck(gateway: GatewayProcess, progress: Progress, now_s: float) -> None:
    stale_s = STANDBY_STALE_S if gateway.role is GatewayRole.STANDBY else STALE_S
    if progress.activity is Activity.STARTING:
        if now_s - gateway.started_s > START_S:
            gateway.kill(f"it had not come up within {START_S:g} s")
    elif now_s - progress.heartbeat_ns / 1e9 > stale_s:
        gateway.kill(f"its loop had not come round for {stale_s:g} s")
