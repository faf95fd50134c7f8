"""Makes the parts of a controller, group by group, and connects those that call each other."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from mmsup.ipc.messages.keeper_control import SaveCheckpoint
from mmsup.supervisor.api.control_socket import ControlSocket
from mmsup.supervisor.api.gateway_requests import GatewayRequests
from mmsup.supervisor.api.handlers import Handlers
from mmsup.supervisor.api.history_commands import HistoryCommands
from mmsup.supervisor.api.model_commands import ModelCommands
from mmsup.supervisor.api.resource_commands import ResourceCommands
from mmsup.supervisor.api.server_commands import ServerCommands, UpgradeRequests
from mmsup.supervisor.api.status import ServerInfo, StatusViews
from mmsup.supervisor.controller.components import Api, ControllerContext, Gateways, Models, Resources, Storage
from mmsup.supervisor.controller.event_console import EventConsole
from mmsup.supervisor.controller.readiness_reporter import ReadinessReporter
from mmsup.supervisor.controller.recovery import Checkpoint, poison_key
from mmsup.supervisor.controller.state_dir import StateDir
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.broadcast import GatewayBroadcast
from mmsup.supervisor.gateways.gateway_checks import GatewayChecks
from mmsup.supervisor.gateways.gateway_events import GatewayEvents
from mmsup.supervisor.gateways.gateway_process import GatewayContext
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gpu.health import GpuHealth
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances import actions
from mmsup.supervisor.instances.context import InstanceContext
from mmsup.supervisor.instances.instance import InstanceHooks
from mmsup.supervisor.instances.memory_sampler import MemorySampler
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.pending_load import LoadContext
from mmsup.supervisor.models.recycling import Recycler
from mmsup.supervisor.models.repository_watcher import RepositoryWatcher
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment
from mmsup.supervisor.resources.gpu_placement import GpuPlacement
from mmsup.supervisor.state.checkpoint import CheckpointWriter

GATEWAY_LOG_NAME: Final = "_gateways"
CONTROL_LISTENER: Final = "control"


def make_storage(context: ControllerContext, texts: Mapping[str, str], recovered: Checkpoint | None) -> Storage:
    """The state directory, and the checkpoint as the keeper holds it."""

    def send(key: str, text: str) -> None:
        context.keeper.send(SaveCheckpoint(key, text))

    def on_too_large(key: str, length: int) -> None:
        text = f"{key}: {length} characters are too many: the next controller will not know what changes from here on"
        context.console.log("error", "not_remembered", text=text)

    if recovered is None:
        for key in texts:
            send(key, "")  # of another version of the code
    state_dir = StateDir(context.settings)
    state_dir.event_log.subscribe(EventConsole(context.console))
    checkpoint = CheckpointWriter(send, on_too_large, recovered.records if recovered is not None else {})
    return Storage(state_dir, state_dir.event_log, checkpoint)


def make_launch_environment(
    context: ControllerContext, storage: Storage, environ: Mapping[str, str]
) -> LaunchEnvironment:
    cpus = len(os.sched_getaffinity(0))
    return LaunchEnvironment(environ, storage.state_dir.scratch, context.settings.runtime_dir, cpus)


def make_pool(context: ControllerContext, storage: Storage, environment: LaunchEnvironment) -> GatewayPool:
    addresses = {name: each for name, each in context.inventory.addresses.items() if name != CONTROL_LISTENER}
    output = storage.state_dir.model_output(GATEWAY_LOG_NAME)
    return GatewayPool(
        GatewayContext(context.settings, environment, context.keeper, storage.event_log, output, addresses)
    )


def make_gateways(
    pool: GatewayPool, storage: Storage, model_set: ModelSet, readiness: ReadinessReporter
) -> tuple[Gateways, CrashCollector]:

    def on_poison_change(name: str) -> None:
        storage.checkpoint.save(poison_key(name), poison_requests.record(name))

    poison_requests = PoisonRegistry(storage.event_log, pool.broadcast, on_poison_change)
    barriers = GatewayBarriers(pool)
    broadcast = GatewayBroadcast(pool, barriers, model_set, poison_requests, readiness.readiness)
    collector = CrashCollector(storage.state_dir.crash_archive, storage.event_log, pool.connected_numbers)
    events = pool.context.owner = GatewayEvents(pool, barriers, broadcast, model_set, poison_requests, collector)
    checks = GatewayChecks(pool, pool.context)
    return Gateways(pool.context, pool, barriers, broadcast, checks, events, poison_requests), collector


def make_models(context: ControllerContext, storage: Storage, model_set: ModelSet, gateways: Gateways) -> Models:
    settings, event_log, desired_state = context.settings, storage.event_log, storage.state_dir.desired_state
    model_set.on_route = gateways.broadcast.route
    model_set.on_unroute = gateways.broadcast.unroute
    loader = ModelLoader(settings, desired_state, LoadContext(model_set, gateways.barriers, event_log))
    replacement = RollingReplacement(model_set, context.change_signal.wait_until)
    return Models(
        model_set, loader, replacement, RepositoryWatcher(settings, model_set, desired_state, loader, event_log)
    )


def make_resources(
    context: ControllerContext,
    storage: Storage,
    models: Models,
    environment: LaunchEnvironment,
    collector: CrashCollector,
    on_gpus_changed: Callable[[], None],
) -> Resources:
    monitor = GpuMonitor(storage.event_log, environment.base_env, context.settings.gpu_driver)
    health = GpuHealth(monitor, storage.event_log, on_gpus_changed)
    recycler = Recycler(models.model_set, models.replacement, context.tasks.start)
    return Resources(
        Cleanup(),
        collector,
        MemorySampler(models.model_set.instances, recycler.check),
        monitor,
        health,
        GpuPlacement(models.model_set, monitor, health),
    )


def connect_instances(
    context: ControllerContext,
    storage: Storage,
    models: Models,
    gateways: Gateways,
    resources: Resources,
    cgroups: CgroupBackend,
) -> None:
    model_set = models.model_set
    model_set.context = InstanceContext(
        settings=context.settings,
        launch_environment=gateways.context.launch_environment,
        keeper=context.keeper,
        gateways=gateways.broadcast,
        cgroups=cgroups,
        event_log=storage.event_log,
        model_output=storage.state_dir.model_output,
        cleanup=resources.cleanup,
        crash_collector=resources.crash_collector,
        devices=resources.gpu_placement,
        rng=random.Random(),
    )
    model_set.hooks = InstanceHooks(
        perform=actions.perform,
        on_change=model_set.on_instance_changed,
        on_progress=models.loader.on_progress,
        on_ready=partial(revision_changes.link_if_active, model_set),
    )


def make_api(
    info: ServerInfo,
    storage: Storage,
    models: Models,
    gateways: Gateways,
    resources: Resources,
    upgrades: UpgradeRequests,
) -> Api:
    model_set, event_log = models.model_set, storage.event_log
    views = StatusViews(info, model_set, gateways.pool, event_log, resources.gpu_placement.rows)
    reports, output = resources.crash_collector.reports, storage.state_dir.model_output
    handlers = Handlers(
        ServerCommands(views, upgrades).commands(),
        ModelCommands(views, model_set, models.loader).commands(),
        HistoryCommands(model_set, event_log, output, reports).commands(),
        ResourceCommands(model_set, gateways.poison_requests, resources.gpu_placement).commands(),
    )
    return Api(handlers, ControlSocket(handlers), GatewayRequests(handlers, gateways.context.settings))
