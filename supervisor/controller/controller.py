"""The controller: takes over from an earlier one or starts the models, and passes on what changes from then on.

It is made when the keeper's inventory has come, and finishes when it has sent the keeper ShutdownFinished. Its parts
are made in assembly.py; what they decide stands in their files.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest
from mmsup.ipc.messages.keeper_control import (
    KeeperInventory,
    ReloadRequested,
    TerminateRequested,
)
from mmsup.ipc.paths import control_socket
from mmsup.supervisor.api.socket_watch import SocketWatch
from mmsup.supervisor.api.status import ServerInfo
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller import assembly, recovery
from mmsup.supervisor.controller.change_signal import ChangeSignal
from mmsup.supervisor.controller.children import ChildRouter, RouterTargets
from mmsup.supervisor.controller.components import ControllerContext
from mmsup.supervisor.controller.readiness_reporter import ReadinessReporter
from mmsup.supervisor.controller.recovery import (
    GATEWAYS_KEY,
    GPUS_KEY,
    SERVER_KEY,
    GpuRecords,
    ServerRecord,
    model_key,
)
from mmsup.supervisor.controller.shutdown import finish, shut_down
from mmsup.supervisor.controller.tasks import TaskSet
from mmsup.supervisor.controller.upgrade import Upgrader
from mmsup.supervisor.controller.upgrade_record import UpgradeRecord
from mmsup.supervisor.gateways.gateway_records import gateway_records
from mmsup.supervisor.instances.context import KeeperSender
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.models import startup_policy
from mmsup.supervisor.models.model_records import model_record
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.reconciler import Reconciler
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.repository.validation_report import collect_warnings


class Controller:
    def __init__(
        self,
        inventory: KeeperInventory,
        checkpoint: Mapping[str, str],
        keeper: KeeperSender,
        environ: Mapping[str, str],
        console: Console,
        cgroups: CgroupBackend,
    ) -> None:
        """`checkpoint`: of the controller before, by key. `environ`: workers get an allow-list of it."""
        settings = Settings.from_json(inventory.settings)
        self.context = context = ControllerContext(
            settings, inventory, keeper, console, ChangeSignal(), TaskSet(), asyncio.Event()
        )
        self._recovered = recovered = recovery.read_checkpoint(checkpoint)
        self.storage = storage = assembly.make_storage(context, checkpoint, recovered)
        model_set = ModelSet()
        environment = assembly.make_launch_environment(context, storage, environ)
        pool = assembly.make_pool(context, storage, environment)
        is_announced = recovered is not None and recovered.server.is_announced
        self.readiness = ReadinessReporter(
            pool.context, pool, model_set, console, self._on_announced, is_announced=is_announced
        )
        self.gateways, collector = assembly.make_gateways(pool, storage, model_set, self.readiness)
        self.models = assembly.make_models(context, storage, model_set, self.gateways)
        self.resources = assembly.make_resources(context, storage, self.models, environment, collector, self._save_gpus)
        assembly.connect_instances(context, storage, self.models, self.gateways, self.resources, cgroups)
        Reconciler(model_set, settings.max_parallel_loads, self._on_reconciled)
        pool.on_change = self._on_gateways_changed
        self.gateways.checks.is_server_up = is_announced
        upgrades = recovered.all_of(UpgradeRecord) if recovered is not None else ()
        self.upgrader = Upgrader(context, storage, self.models, self.gateways, next(iter(upgrades), None))
        self._server = ServerInfo(
            keeper_pid=inventory.keeper_pid,
            controller_pid=os.getpid(),
            controller_generation=inventory.generation,
            started_s=recovered.server.started_s if recovered is not None else time.monotonic(),
            addresses=inventory.addresses,
            isolation=cgroups.description,
            readiness=self.readiness.readiness,
        )
        self.api = assembly.make_api(self._server, storage, self.models, self.gateways, self.resources, self.upgrader)
        self.gateways.events.on_command = self._on_command
        self._socket_watch = SocketWatch(control_socket(settings.runtime_dir), self._on_new_listener)

    async def start(self, router: ChildRouter, listener: socket.socket | None) -> None:
        """Take over or start, then serve the control socket, if there is one."""
        context, resources = self.context, self.resources
        resources.crash_collector.start()
        resources.memory_sampler.start()
        if self._recovered is not None:
            recovery.restore(self._recovered, self.models, self.gateways, self.resources)
        else:
            await resources.gpu_monitor.query_once()
        context.tasks.start(resources.gpu_monitor.run(), "GPUs")
        failpoint("brain.restored")
        router.start(
            RouterTargets(
                context.keeper,
                self.models.model_set,
                self.gateways.pool,
                on_workers_adopted=lambda: self._on_workers_adopted(router),
                on_complete=self.gateways.checks.start,
                on_request=self._on_keeper_request,
            )
        )
        if listener is not None:
            await self.api.control_socket.start(listener)
            self._socket_watch.start()
        if context.settings.control_mode == "poll":
            context.tasks.start(self.models.watcher.poll(), "poll")

    def _on_new_listener(self, listener: socket.socket) -> None:
        text = "the control socket was removed or taken, and is there again"
        self.storage.event_log.record("control_reopened", text)
        self.context.tasks.start(self.api.control_socket.start(listener), "control socket")

    def _on_workers_adopted(self, router: ChildRouter) -> None:
        if self._recovered is None:
            self._start_models()
        else:
            recovery.take_over(
                self.context,
                self.storage,
                self.models,
                is_announced=self.readiness.is_announced,
                unknown_children=router.unknown_children,
            )
            failpoint("brain.readopted")
            self.upgrader.resume()
        if self.context.inventory.stopping:
            self.terminate()

    def _start_models(self) -> None:
        settings, models, storage = self.context.settings, self.models, self.storage
        text = f"mmsup server, {settings.control_mode} mode, {self._server.isolation}"
        storage.event_log.record("server_start", text, keeper=self.context.inventory.keeper_pid)
        startup_policy.clean_scratch(storage.state_dir.scratch)
        found = models.watcher.scan()
        for each in collect_warnings(settings, found):
            self.context.console.log("warning", "configuration", place=each.place, text=each.text)
        desired_state = storage.state_dir.desired_state
        startup_policy.start_models(found, settings, models.model_set, desired_state, models.loader)
        self._save_server()
        failpoint("brain.begun")

    def _on_keeper_request(self, message: Any) -> None:  # one of FROM_KEEPER that is about no child
        match message:
            case TerminateRequested():
                self.terminate()
            case ReloadRequested():
                self.context.tasks.start(self.models.watcher.check(), "reload")
            case _:
                self.upgrader.on_keeper_answer(message)

    def terminate(self) -> None:
        if not self.gateways.context.is_stopping:
            self.gateways.context.is_stopping = True
            self.upgrader.stop()
            self.context.tasks.start(self._shut_down(), "shutdown")

    async def _shut_down(self) -> None:
        text = "draining: accepted work is finished, new work is refused"
        self.storage.event_log.record("stopping", text)
        self.models.loader.stop_accepting()
        self.readiness.report()
        finish(self.context, await shut_down(self.context, self.storage, self.models, self.gateways))

    def _on_command(self, request: CommandRequest, send: Callable[[CommandReply], None]) -> None:
        answer = self.api.gateway_requests.answer(request, send)
        self.context.tasks.start(answer, f"command {request.command:.20}")

    def _on_reconciled(self, changed: set[str], readiness_changed: bool) -> None:
        """A pass over these models is done: what follows from it outside of the model set."""
        models, checkpoint = self.models.model_set.models, self.storage.checkpoint
        self.models.loader.on_models_changed(changed)
        self._save_server()
        for name in changed:
            model = models.get(name)
            checkpoint.save(model_key(name), model_record(model))
            if model is not None and model.active is not None:
                self.gateways.poison_requests.drop_outdated(name, model.active.content_id)
        self._save_gpus()
        if readiness_changed:
            self.readiness.report()
        self.context.change_signal.set()

    def _on_gateways_changed(self) -> None:
        self.storage.checkpoint.save(GATEWAYS_KEY, gateway_records(self.gateways.pool))
        self.readiness.report()
        self.context.change_signal.set()

    def _on_announced(self, failed: list[str]) -> None:
        self.gateways.checks.is_server_up = True
        self._save_server()
        if failed and self.context.settings.exit_on_error:
            self.context.console.log("error", "exit_on_error", text=f"not serving: {', '.join(failed)}")
            finish(self.context, exit_codes.REFUSED)

    def _save_server(self) -> None:
        next_id = self.models.model_set.next_instance_id
        record = ServerRecord(self._server.started_s, self.readiness.is_announced, next_id)
        self.storage.checkpoint.save(SERVER_KEY, record)

    def _save_gpus(self) -> None:
        self.storage.checkpoint.save(GPUS_KEY, GpuRecords(self.resources.gpu_health.records()))

    async def close(self) -> None:
        """Release everything that this process holds; its children go on."""
        await self.context.tasks.close()
        self._socket_watch.close()
        await self.api.control_socket.close()
        await self.models.loader.close()
        self.resources.memory_sampler.close()
        await self.resources.gpu_monitor.close()
        self.gateways.barriers.close()
        self.gateways.checks.close()
        self.gateways.pool.close()
        self.models.model_set.close()
        self.resources.cleanup.close()
        self.resources.crash_collector.close()
        self.storage.state_dir.close()
