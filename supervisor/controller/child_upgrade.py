"""The second stage of a hot upgrade: replaces gateways one by one, then workers, as many at a time as may load.

A new gateway serves before the old one is retired; a new worker is ready before the old one drains
(models/rolling_replacement.py). Zygotes end before the workers are replaced, and others follow.
"""

from __future__ import annotations

import asyncio
from typing import Final

from mmsup.ipc.errors import ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.supervisor.controller.components import ControllerContext, Gateways, Models
from mmsup.supervisor.controller.upgrade_record import UpgradeProgress
from mmsup.supervisor.gateways.gateway_checks import START_S
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import start_successor
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState

MAX_GATEWAY_STARTS: Final = 2
"""A gateway that exits before it serves may have been killed by accident; if two do, the new code is at fault."""
OLD_GATEWAY_EXIT_S: Final = 2.0
"""How long the result waits for old gateways to exit; one with idle connections takes longer, and harms nobody."""


class ProcessUpgrade:
    """One run of the stage; a later controller runs what is left."""

    def __init__(
        self, progress: UpgradeProgress, context: ControllerContext, models: Models, gateways: Gateways
    ) -> None:
        self._progress = progress
        self._context = context
        self._models = models
        self._pool = gateways.pool
        self._rpc_front = gateways.rpc_front
        self._wait_until = context.change_signal.wait_until

    async def run(self) -> None:
        """Replace everything that is older than the upgrade; ServerError if no new gateway comes up."""
        progress, pool, inventory = self._progress, self._pool, self._context.inventory
        progress.report(f"controller {inventory.generation} has taken over")
        if progress.present.replaces_keeper and inventory.keeper_generation == progress.present.keeper_generation:
            self._keep("keeper", "it could not become another program: the server's log has the reason")
        await self._wait_until(pool.are_up, START_S)
        while (gateway := self._next_gateway()) is not None:
            await self._replace_gateway(gateway)
        # Not before: a standby of the old code is good as long as no gateway of the new code has served.
        pool.standby.replace_older(progress.present.started_s)
        self._rpc_front.renew()
        self._models.model_set.context.starts.renew()
        for model in list(self._models.model_set.models.values()):  # what is in host memory is there with the old code
            self._models.sleeper.give_up_copy(model, model.sleep.reason, "and the server was upgraded")
        loads = asyncio.Semaphore(self._context.settings.max_parallel_loads)
        async with asyncio.TaskGroup() as group:
            for worker in self._old_workers():
                group.create_task(self._replace_worker(worker, loads))
        await self._wait_until(lambda: not pool.unseated, OLD_GATEWAY_EXIT_S)
        if pool.unseated:
            progress.report("old gateways have connections left, and leave when these do")

    def _next_gateway(self) -> GatewayProcess | None:
        started_s = self._progress.present.started_s
        old = (each for each in self._pool.seats if each.spawned_s < started_s and each.process is not None)
        return next(old, None)

    async def _replace_gateway(self, old: GatewayProcess) -> None:
        pool = self._pool
        for _ in range(MAX_GATEWAY_STARTS):
            new = await self._start_successor()
            if old not in pool.seats:  # it has exited, and the standby has its seat
                new.retire()
                return
            if new.is_serving:
                pool.replace(old, new)
                failpoint("brain.gateway_replaced")
                self._count_replaced()
                old.retire()
                self._progress.report(f"gateway {new.number} serves in the place of gateway {old.number}")
                return
            new.retire()
        raise ServerError("unavailable", "no gateway of the new code comes up; the old ones serve on, workers stay")

    async def _start_successor(self) -> GatewayProcess:
        pool = self._pool
        while (new := start_successor(pool)) is None:
            self._progress.report("waiting for a gateway of the last upgrade to leave")
            await self._wait_until(lambda: pool.free_number() is not None)
        await self._wait_until(lambda: new.is_serving or new not in pool.unseated, START_S)
        return new

    def _old_workers(self) -> list[Instance]:
        record, models = self._progress.present, self._models.model_set.models
        active = [revision for name in sorted(models) if (revision := models[name].active) is not None]
        return [
            each
            for revision in active
            for each in revision.instances()
            if each.worker is not None and each.worker.spawned_s < record.started_s
            if each.state in STARTING_UP or each.state is InstanceState.READY
            if _name(each) not in record.kept
        ]

    async def _replace_worker(self, old: Instance, loads: asyncio.Semaphore) -> None:
        async with loads:
            name = _name(old)
            self._progress.report(f"replacing {name}")
            failure = await self._models.replacement.replace(old)
            if failure:
                self._keep(name, failure)
            else:
                self._count_replaced()

    def _count_replaced(self) -> None:
        self._progress.update(replaced=self._progress.present.replaced + 1)
        failpoint("brain.followed")

    def _keep(self, name: str, reason: str) -> None:
        self._progress.report(f"{name} stays: {reason}")
        self._progress.update(kept={**self._progress.present.kept, name: reason})


def _name(instance: Instance) -> str:
    spec = instance.revision.spec
    return f"worker {instance.id} of {spec.name}/{spec.version}"
