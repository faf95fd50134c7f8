"""The parts of a controller, made group by group, and what all of them share."""

from __future__ import annotations

import asyncio
import os
import random
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from mmsup.ipc.memory.available_memory import total_bytes
from mmsup.ipc.messages.keeper_control import KeeperInventory, SaveCheckpoint
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.api.commands import Commands, StartUpgrade
from mmsup.supervisor.api.control_socket import ControlSocket
from mmsup.supervisor.api.handlers import Handlers
from mmsup.supervisor.api.history_commands import HistoryCommands
from mmsup.supervisor.api.on_demand_commands import OnDemandCommands
from mmsup.supervisor.api.settings_commands import SettingsCommands
from mmsup.supervisor.api.status import ServerInfo, StatusViews
from mmsup.supervisor.capacity.budget import memory_budgets
from mmsup.supervisor.capacity.footprint_meter import FootprintMeter
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.capacity.memory_accounts import MemoryAccounts
from mmsup.supervisor.capacity.memory_admission import MemoryAdmission
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.change_signal import ChangeSignal
from mmsup.supervisor.controller.event_console import EventConsole, apply_log_settings
from mmsup.supervisor.controller.readiness_reporter import ReadinessReporter
from mmsup.supervisor.controller.state_dir import StateDir
from mmsup.supervisor.controller.tasks import TaskSet
from mmsup.supervisor.eviction.candidates import Candidates
from mmsup.supervisor.eviction.evictor import ModelEvictor
from mmsup.supervisor.eviction.pressure_watch import PressureWatch, read_facts
from mmsup.supervisor.eviction.room_reserve import RoomReserve
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.broadcast import GatewayBroadcast
from mmsup.supervisor.gateways.client_regions import ClientRegions, machine_limits
from mmsup.supervisor.gateways.gateway_checks import GatewayChecks
from mmsup.supervisor.gateways.gateway_events import GatewayEvents
from mmsup.supervisor.gateways.gateway_process import GatewayContext
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry, poison_key
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gateways.rpc_front import RpcFront
from mmsup.supervisor.gpu.health import GpuHealth
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.groups.pool import GroupPool
from mmsup.supervisor.instances import actions
from mmsup.supervisor.instances.context import InstanceContext, KeeperSender
from mmsup.supervisor.instances.instance import Instance, InstanceHooks
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.memory_sampler import MemorySampler
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.loader import LoadContext, ModelLoader
from mmsup.supervisor.models.model_set import ModelSet, content_id, is_awaited, start_bound_s, take_number
from mmsup.supervisor.models.recycling import Recycler
from mmsup.supervisor.models.repository_watcher import RepositoryWatcher
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.models.sleep_state import FailedMove
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.observability.model_output import GATEWAY_OUTPUT, ZYGOTE_OUTPUT
from mmsup.supervisor.on_demand.idle_watch import IdleWatch
from mmsup.supervisor.on_demand.model_usage import ModelUsage
from mmsup.supervisor.on_demand.sleeper import Sleeper
from mmsup.supervisor.on_demand.waker import Waker
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment
from mmsup.supervisor.resources.descriptor_budget import DescriptorBudget
from mmsup.supervisor.resources.escaped_workers import EscapedWorkers
from mmsup.supervisor.resources.gpu_placement import GpuPlacement
from mmsup.supervisor.resources.held_memory import FORKED_BYTES, IMPORTED_BYTES, ZygoteClaims, device_memory
from mmsup.supervisor.resources.memory_watch import check_memory
from mmsup.supervisor.runtime_settings.runtime_settings import SETTINGS_KEY, RuntimeSettings, SettingsRecord
from mmsup.supervisor.state.checkpoint import CheckpointWriter
from mmsup.supervisor.uploads.model_uploads import ModelUploads
from mmsup.supervisor.zygotes.launcher import PoolContext
from mmsup.supervisor.zygotes.pool import ZygotePool

CONTROL_LISTENER: Final = "control"


@dataclass(frozen=True, slots=True)
class ControllerContext:
    settings: Settings
    inventory: KeeperInventory
    keeper: KeeperSender
    console: Console
    state_dir: StateDir
    checkpoint: CheckpointWriter
    launch_environment: LaunchEnvironment
    change_signal: ChangeSignal
    tasks: TaskSet
    runtime_settings: RuntimeSettings
    finished: asyncio.Event
    """Nothing is left to do but to exit."""


def make_context(
    inventory: KeeperInventory,
    keeper: KeeperSender,
    console: Console,
    environ: Mapping[str, str],
    records: Mapping[str, object],
) -> ControllerContext:
    """`records`: those of the checkpoint, as the keeper holds it."""

    def save(key: str, text: str) -> None:
        keeper.send(SaveCheckpoint(key, text))

    def on_too_large(key: str, length: int) -> None:
        text = f"{key}: {length} characters are too many: the next controller will not know what changes from here on"
        console.log("error", "not_remembered", text=text)

    settings = Settings.from_json(inventory.settings)
    state_dir = StateDir(settings)
    if state_dir.uploads is not None:
        settings = replace(settings, repositories=(*settings.repositories, str(state_dir.uploads.directory)))
    state_dir.event_log.subscribe(EventConsole(console))
    cpus = len(os.sched_getaffinity(0))
    return ControllerContext(
        settings,
        inventory,
        keeper,
        console,
        state_dir,
        CheckpointWriter(save, on_too_large, records),
        LaunchEnvironment(environ, state_dir.scratch, settings.runtime_dir, cpus),
        ChangeSignal(),
        TaskSet(),
        _runtime_settings(settings, records, console),
        asyncio.Event(),
    )


def _runtime_settings(settings: Settings, records: Mapping[str, object], console: Console) -> RuntimeSettings:
    """Those of the server's flags, or as the controller before had them."""
    made, saved = RuntimeSettings(settings.logging), records.get(SETTINGS_KEY)
    if isinstance(saved, SettingsRecord):
        made.record = saved
    apply_log_settings(console, made.record.log)
    return made


class Gateways:
    def __init__(
        self,
        context: ControllerContext,
        model_set: ModelSet,
        on_announced: Callable[[list[str]], None],
        *,
        is_announced: bool,
    ) -> None:
        """`on_announced`, `is_announced`: as ReadinessReporter has them."""

        def on_poison_change(name: str) -> None:
            context.checkpoint.save(poison_key(name), self.poison_requests.record(name))

        event_log = context.state_dir.event_log
        addresses = {name: each for name, each in context.inventory.addresses.items() if name != CONTROL_LISTENER}
        output = context.state_dir.model_output(GATEWAY_OUTPUT)
        self.context = GatewayContext(
            context.settings, context.launch_environment, context.keeper, event_log, output, addresses
        )
        self.pool = pool = GatewayPool(self.context)
        self.rpc_front = RpcFront(self.context, context.inventory.generation)
        self.context.can_relay = lambda: self.rpc_front.can_run
        self.readiness = ReadinessReporter(pool, model_set, context.console, on_announced, is_announced=is_announced)
        self.poison_requests = PoisonRegistry(event_log, pool.broadcast, on_poison_change)
        self.barriers = GatewayBarriers(pool)
        self.broadcast = GatewayBroadcast(pool, self.barriers)
        self.crash_collector = CrashCollector(context.state_dir.crash_archive, event_log, pool.connected_numbers)
        self.events = self.context.owner = GatewayEvents(
            pool,
            self.barriers,
            self.broadcast,
            model_set,
            self.poison_requests,
            ClientRegions(pool, self.barriers.add, machine_limits()),
            self.crash_collector,
            self.readiness.readiness,
        )
        self.events.on_rpc_front_failed = self.rpc_front.on_own_front_failed
        self.checks = GatewayChecks(pool, self.rpc_front, lambda: self.readiness.is_announced)
        runtime_settings = context.runtime_settings
        self.events.log_settings = lambda: runtime_settings.record.log

        def on_settings_change(record: SettingsRecord) -> None:
            context.checkpoint.save(SETTINGS_KEY, record)
            apply_log_settings(context.console, record.log)
            pool.broadcast(record.log)

        runtime_settings.on_change = on_settings_change


class Models:
    def __init__(self, context: ControllerContext, model_set: ModelSet, gateways: Gateways) -> None:
        self.model_set = model_set
        model_set.send_to_gateways = gateways.pool.broadcast
        self.context = LoadContext(
            context.settings,
            model_set,
            context.state_dir.desired_state,
            gateways.barriers.wait_until_applied,
            context.state_dir.event_log,
        )
        self.loader = ModelLoader(self.context)
        self.footprints = FootprintMeter(
            FootprintStore(context.state_dir.footprints),
            partial(content_id, model_set),
            gateways.crash_collector.run_on_disk,
        )
        self.replacement = RollingReplacement(model_set, context.change_signal.wait_until)
        self.watcher = RepositoryWatcher(self.context, self.loader)
        usage = ModelUsage()
        self.sleeper = Sleeper(self.context, self.loader, usage)
        self.loader.on_no_room = self.sleeper.return_to_sleep
        self.waker = Waker(self.context, self.loader)
        self.idle_watch = IdleWatch(context.settings, model_set, self.sleeper, usage)
        candidates = Candidates(context.settings, model_set, self.sleeper, usage)
        reserve = RoomReserve(model_set, candidates, self.footprints.used_bytes)
        self.evictor = ModelEvictor(model_set, self.sleeper, candidates, reserve, context.state_dir.event_log)


class GpuParts:
    """Which GPUs there are, which of them are cordoned, and who gets which."""

    def __init__(self, context: ControllerContext, model_set: ModelSet, on_changed: Callable[[], None]) -> None:
        event_log, settings = context.state_dir.event_log, context.settings
        self.monitor = GpuMonitor(event_log, context.launch_environment.base_env, settings.gpu_driver)
        self.health = GpuHealth(self.monitor, event_log, on_changed)
        self.placement = GpuPlacement(model_set, self.monitor, self.health)


class StartParts:
    """Of what workers are started, what they may take for it, and what is removed after them."""

    def __init__(self, context: ControllerContext, model_set: ModelSet, cgroups: CgroupBackend) -> None:
        self.cleanup = Cleanup()
        self.zygotes = ZygotePool(
            PoolContext(
                context.keeper.send,
                context.launch_environment,
                cgroups,
                self.cleanup,
                context.state_dir.event_log,
                context.state_dir.model_output(ZYGOTE_OUTPUT),
                context.settings.zygotes,
                context.inventory.generation,
                lambda: any(each.state is InstanceState.READY for each in model_set.instances()),
            ),
            lambda: _specs_of_workers(model_set),
            lambda: (each.revision.spec for each in model_set.instances() if each.process and each.is_forked),
        )
        self.groups = GroupPool(lambda: model_set.context, partial(take_number, model_set))
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.descriptors = DescriptorBudget(model_set, files, context.settings.gateway_seats)

    def close(self) -> None:
        self.zygotes.close()
        self.groups.close()


class MemoryParts:
    """What workers hold, which loads fit beside them, and what is given back when memory runs short."""

    def __init__(self, context: ControllerContext, models: Models, gpus: GpuMonitor, zygotes: ZygotePool) -> None:
        model_set = models.model_set
        accounts = MemoryAccounts(
            memory_budgets(context.settings, total_bytes()),
            model_set.instances,
            models.footprints,
            partial(device_memory, gpus),
            models.evictor,
            ZygoteClaims(zygotes.rows),
        )
        models.evictor.held_bytes = accounts.claimed_bytes
        model_set.memory = MemoryAdmission(accounts)
        facts = partial(read_facts, accounts.host_pool)
        self.pressure_watch = PressureWatch(facts, models.evictor.give_back, context.state_dir.event_log)
        self._model_set = model_set
        self._evictor = models.evictor
        self._footprints = models.footprints
        self.accounts = accounts
        self._recycler = Recycler(model_set, models.replacement, context.tasks.start)
        self._escaped = EscapedWorkers()
        self.sampler = MemorySampler(model_set.instances, self._check)

    def _check(self, instances: Sequence[Instance]) -> None:
        for instance in instances:
            self._escaped.check(instance)
            self._recycler.check(instance)
            self._footprints.observe(instance)
            self.accounts.note_context(instance)
        self._footprints.forget_others(instances)
        check_memory(instances)
        self.retry_refused()

    def make_room_for_zygote(self, engine_set: str) -> bool:
        needed_bytes = IMPORTED_BYTES.get(engine_set, 0) + FORKED_BYTES
        why = f"room for the zygote of {engine_set}"
        return self._evictor.room_for(self.accounts.host_pool(), needed_bytes, why)

    def retry_refused(self) -> None:
        """Let loads begin that were refused for memory and fit now."""
        self._model_set.memory.retry_refused(self._model_set.retry)


class Resources:
    def __init__(
        self, context: ControllerContext, models: Models, cgroups: CgroupBackend, on_gpus_changed: Callable[[], None]
    ) -> None:
        self.gpus = GpuParts(context, models.model_set, on_gpus_changed)
        self.starts = StartParts(context, models.model_set, cgroups)
        self.memory = MemoryParts(context, models, self.gpus.monitor, self.starts.zygotes)
        self.gpus.placement.missing_bytes = self.memory.accounts.missing_bytes
        self.starts.zygotes.make_room = self.memory.make_room_for_zygote


def _specs_of_workers(model_set: ModelSet) -> Iterator[ModelSpec]:
    """One for each worker that is there, or waits for its load."""
    return (each.revision.spec for each in model_set.instances() if each.worker is not None or each.is_queued)


def connect_instances(
    context: ControllerContext, models: Models, gateways: Gateways, resources: Resources, cgroups: CgroupBackend
) -> None:
    model_set = models.model_set
    resources.gpus.placement.has_dmem = cgroups.has_device_caps
    gateways.events.regions.gpus = lambda: resources.gpus.monitor.gpus
    model_set.context = InstanceContext(
        settings=context.settings,
        launch_environment=context.launch_environment,
        keeper=context.keeper,
        gateways=gateways.broadcast,
        cgroups=cgroups,
        event_log=context.state_dir.event_log,
        model_output=context.state_dir.model_output,
        cleanup=resources.starts.cleanup,
        crash_collector=gateways.crash_collector,
        devices=resources.gpus.placement,
        starts=resources.starts.zygotes,
        groups=resources.starts.groups,
        refuse_start=resources.starts.descriptors.refusal,
        rng=random.Random(),
    )

    def on_ready(instance: Instance) -> None:
        revision_changes.link_if_active(model_set, instance)
        models.footprints.observe(instance)

    def on_move_failed(instance: Instance, text: str) -> None:
        model, revision = model_set.model(instance.revision.spec.name), model_set.revision_of(instance)
        if model is not None and revision is not None:
            model.sleep.failed_move = FailedMove(revision.stamp, text)

    gateways.context.idle = cgroups.idle
    model_set.hooks = InstanceHooks(
        is_awaited=partial(is_awaited, model_set),
        start_bound_s=partial(start_bound_s, model_set),
        require_memory=model_set.memory.require,
        perform=actions.perform,
        on_change=model_set.on_instance_changed,
        on_progress=models.loader.on_progress,
        on_ready=on_ready,
        on_moved=models.footprints.note_move,
        on_move_failed=on_move_failed,
    )


class Api:
    def __init__(
        self,
        info: ServerInfo,
        context: ControllerContext,
        models: Models,
        gateways: Gateways,
        resources: Resources,
        request_upgrade: StartUpgrade,
    ) -> None:
        state_dir, model_set, devices = context.state_dir, models.model_set, resources.gpus.placement
        zygotes = resources.starts.zygotes
        views = StatusViews(
            info, model_set, gateways.pool, state_dir.event_log, devices.rows, zygotes.rows, gateways.rpc_front
        )
        uploads = ModelUploads(state_dir.uploads, models.context, models.loader, models.watcher)
        commands = Commands(
            views, model_set, models.loader, uploads, gateways.poison_requests, devices, request_upgrade
        )
        on_demand = OnDemandCommands(models.waker, models.sleeper)
        reports = gateways.crash_collector.reports
        history = HistoryCommands(model_set, state_dir.event_log, state_dir.model_output, reports)
        settings = SettingsCommands(context.runtime_settings, model_set)
        self.handlers = Handlers(commands.by_name(), history.by_name(), on_demand.by_name(), settings.by_name())
        self.control_socket = ControlSocket(self.handlers.handle)
