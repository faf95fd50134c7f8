"""The parts of a controller in five groups, and what all of them share. Made in controller.py; this file holds them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mmsup.ipc.messages.keeper_control import KeeperInventory
from mmsup.supervisor.api.control_socket import ControlSocket
from mmsup.supervisor.api.gateway_requests import GatewayRequests
from mmsup.supervisor.api.handlers import Handlers
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller.change_signal import ChangeSignal
from mmsup.supervisor.controller.state_dir import StateDir
from mmsup.supervisor.controller.tasks import TaskSet
from mmsup.supervisor.gateways.barrier import GatewayBarriers
from mmsup.supervisor.gateways.broadcast import GatewayBroadcast
from mmsup.supervisor.gateways.gateway_checks import GatewayChecks
from mmsup.supervisor.gateways.gateway_events import GatewayEvents
from mmsup.supervisor.gateways.gateway_process import GatewayContext
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gpu.health import GpuHealth
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances.context import KeeperSender
from mmsup.supervisor.instances.memory_sampler import MemorySampler
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.repository_watcher import RepositoryWatcher
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.resources.gpu_placement import GpuPlacement
from mmsup.supervisor.state.checkpoint import CheckpointWriter


@dataclass(frozen=True, slots=True)
class ControllerContext:
    settings: Settings
    inventory: KeeperInventory
    keeper: KeeperSender
    console: Console
    change_signal: ChangeSignal
    tasks: TaskSet
    finished: asyncio.Event
    """Nothing is left to do but to exit."""


@dataclass(frozen=True, slots=True)
class Storage:
    state_dir: StateDir
    event_log: EventLog
    checkpoint: CheckpointWriter


@dataclass(frozen=True, slots=True)
class Models:
    model_set: ModelSet
    loader: ModelLoader
    replacement: RollingReplacement
    watcher: RepositoryWatcher


@dataclass(frozen=True, slots=True)
class Gateways:
    context: GatewayContext
    pool: GatewayPool
    barriers: GatewayBarriers
    broadcast: GatewayBroadcast
    checks: GatewayChecks
    events: GatewayEvents
    poison_requests: PoisonRegistry


@dataclass(frozen=True, slots=True)
class Resources:
    cleanup: Cleanup
    crash_collector: CrashCollector
    memory_sampler: MemorySampler
    gpu_monitor: GpuMonitor
    gpu_health: GpuHealth
    gpu_placement: GpuPlacement


@dataclass(frozen=True, slots=True)
class Api:
    handlers: Handlers
    control_socket: ControlSocket
    gateway_requests: GatewayRequests
