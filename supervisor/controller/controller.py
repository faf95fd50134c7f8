"""The controller: takes over from an earlier one or starts the models, and passes on what changes from then on.

It is made when the keeper's inventory has come, and finishes when it has sent the keeper ShutdownFinished. Its parts
are made in components.py; what they decide stands in their files.
"""

from __future__ import annotations

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
    SaveCheckpoint,
    StopReason,
    TerminateRequested,
)
from mmsup.ipc.paths import control_socket
from mmsup.supervisor.api import gateway_requests
from mmsup.supervisor.api.socket_watch import SocketWatch
from mmsup.supervisor.api.status import ServerInfo
from mmsup.supervisor.controller import components, recovery
from mmsup.supervisor.controller.children import ChildRouter, RouterTargets
from mmsup.supervisor.controller.shutdown import finish, shut_down
from mmsup.supervisor.controller.upgrade import Upgrader
from mmsup.supervisor.controller.upgrade_record import UpgradeRecord
from mmsup.supervisor.gateways.pool import gateway_records
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
        self._recovered = recovered = recovery.read_checkpoint(checkpoint)
        if recovered is None:
            for key in checkpoint:
                keeper.send(SaveCheckpoint(key, ""))  # of another version of the code
        records: Mapping[str, object] = recovered.records if recovered is not None else {}
        self.context = context = components.make_context(inventory, keeper, console, environ, records)
        is_lost = recovered is None and bool(checkpoint)
        context.state_dir.report_unreadable(recovery.LOST_CHECKPOINT if is_lost else "")
        model_set = ModelSet()
        is_announced = recovered is not None and recovered.server.is_announced
        self.gateways = gateways = components.Gateways(
            context, model_set, self._on_announced, is_announced=is_announced
        )
        self.models = models = components.Models(context, model_set, gateways)
        self.resources = resources = components.Resources(context, models, cgroups, self._save_gpus)
        components.connect_instances(context, models, gateways, resources, cgroups)
        Reconciler(model_set, context.settings.max_parallel_loads, self._on_reconciled)
        gateways.pool.on_change = self._on_gateways_changed
        gateways.events.on_command = self._on_command
        upgrades = recovered.all_of(UpgradeRecord) if recovered is not None else ()
        self.upgrader = Upgrader(context, models, gateways, next(iter(upgrades), None))
        started_s = recovered.server.started_s if recovered is not None else time.monotonic()
        self._server = ServerInfo(
            inventory, started_s, cgroups.description, gateways.readiness.readiness, context.state_dir.kept_aside
        )
        self.api = components.Api(self._server, context, models, gateways, resources, self.upgrader.request)
        self._stop_reason = ""
        self._socket_watch = SocketWatch(control_socket(context.settings.runtime_dir), self._on_new_listener)

    async def start(self, router: ChildRouter, listener: socket.socket | None) -> None:
        context, resources = self.context, self.resources
        self.gateways.crash_collector.start()
        grace_s = self._server.started_s + context.settings.startup_grace_s - time.monotonic()
        context.tasks.start(self.gateways.readiness.end_grace(grace_s), "start-up grace")
        resources.memory.sampler.start()
        if self._recovered is not None:
            recovery.restore(self._recovered, self.models, self.gateways, self.resources)
        else:
            await resources.gpus.monitor.query_once()
        context.tasks.start(resources.gpus.monitor.run(), "GPUs")
        failpoint("brain.restored")
        router.start(
            RouterTargets(
                context.keeper,
                self.models.model_set,
                self.gateways.pool,
                self.gateways.rpc_front,
                resources.starts.zygotes,
                resources.starts.groups,
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
        else:
            context.tasks.start(self.models.watcher.follow_mismatches(), "mismatches")

    def _on_new_listener(self, listener: socket.socket) -> None:
        text = "the control socket was removed or taken, and is there again"
        self.context.state_dir.event_log.record("control_reopened", text)
        self.context.tasks.start(self.api.control_socket.start(listener), "control socket")

    def _on_workers_adopted(self, router: ChildRouter) -> None:
        if self._recovered is None:
            self._start_models()
        else:
            recovery.take_over(self.context, self.models, self._recovered, router.unknown_children)
            failpoint("brain.readopted")
            self.upgrader.resume()
        self.models.waker.is_open = True
        self.context.tasks.start(self.models.idle_watch.run(), "idle models")
        self.context.tasks.start(self.resources.memory.pressure_watch.run(), "memory pressure")
        if self.context.inventory.stopping:
            self.terminate()

    def _start_models(self) -> None:
        settings, models, state_dir = self.context.settings, self.models, self.context.state_dir
        text = f"mmsup server, {settings.control_mode} mode, {self._server.isolation}"
        state_dir.event_log.record("server_start", text, keeper=self.context.inventory.keeper_pid)
        startup_policy.clean_scratch(state_dir.scratch)
        found = models.watcher.scan()
        for each in collect_warnings(settings, found):
            self.context.console.log("warning", "configuration", place=each.place, text=each.text)
        startup_policy.start_models(found, models.context, models.loader)
        self._save_server()
        failpoint("brain.begun")

    def _on_keeper_request(self, message: Any) -> None:  # one of FROM_KEEPER that is about no child
        match message:
            case StopReason(text):
                self._stop_reason = text
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
        reason = f"{self._stop_reason}; " if self._stop_reason else ""
        text = f"{reason}draining: accepted work is finished, new work is refused"
        self.context.state_dir.event_log.record("stopping", text)
        self.models.loader.stop_accepting()
        self.gateways.readiness.report()
        finish(self.context, await shut_down(self.context, self.models, self.gateways))

    def _on_command(self, request: CommandRequest, send: Callable[[CommandReply], None]) -> None:
        answer = gateway_requests.answer(self.api.handlers, self.context.settings.control_mode, request, send)
        self.context.tasks.start(answer, f"command {request.command:.20}")

    def _on_reconciled(self, changed: set[str], readiness_changed: bool) -> None:
        """A pass over these models is done: what follows from it outside of the model set."""
        self.models.loader.on_models_changed(changed)
        self._save_server()
        for name in changed:
            model = self.models.model_set.model(name)
            self.context.checkpoint.save(recovery.model_key(name), model_record(model))
            if model is not None and model.active is not None:
                self.gateways.poison_requests.drop_outdated(name, model.active.content_id)
        self._save_gpus()
        self.resources.starts.descriptors.retry_refused()
        self.resources.memory.retry_refused()
        self.resources.starts.zygotes.update_later()
        if readiness_changed:
            self.gateways.readiness.report()
        self.context.change_signal.set()

    def _on_gateways_changed(self) -> None:
        self.context.checkpoint.save(recovery.GATEWAYS_KEY, gateway_records(self.gateways.pool))
        self.gateways.readiness.report()
        self.context.change_signal.set()

    def _on_announced(self, failed: list[str]) -> None:
        self._save_server()
        if failed and self.context.settings.exit_on_error:
            self.context.console.log("error", "exit_on_error", text=f"not serving: {', '.join(failed)}")
            finish(self.context, exit_codes.REFUSED)

    def _save_server(self) -> None:
        next_id = self.models.model_set.next_instance_id
        record = recovery.ServerRecord(self._server.started_s, self.gateways.readiness.is_announced, next_id)
        self.context.checkpoint.save(recovery.SERVER_KEY, record)

    def _save_gpus(self) -> None:
        records = recovery.GpuRecords(self.resources.gpus.health.records())
        self.context.checkpoint.save(recovery.GPUS_KEY, records)

    async def close(self) -> None:
        """Release everything that this process holds; its children go on."""
        await self.context.tasks.close()
        self._socket_watch.close()
        await self.api.control_socket.close()
        await self.models.loader.close()
        self.resources.memory.sampler.close()
        self.models.footprints.close()
        self.models.evictor.close()
        self.resources.starts.close()
        await self.resources.gpus.monitor.close()
        self.gateways.barriers.close()
        self.gateways.events.regions.close()
        self.gateways.checks.close()
        self.gateways.pool.close()
        self.gateways.rpc_front.close()
        self.models.model_set.close()
        self.resources.starts.cleanup.close()
        self.gateways.crash_collector.close()
        self.context.state_dir.close()
