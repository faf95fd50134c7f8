"""The brain, put together: who knows whom, and what is looked at when something has changed.

Made when the keeper's Inventory has come. Takes over what an earlier brain left, or begins with what is wanted; ends
when it has told the keeper Finished. What it is made of decides and acts; this file only connects.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import (
    AddPoisonEntries,
    BadReply,
    CommandReply,
    CommandRequest,
    LinkClosed,
    PoisonSuspected,
    RequestOverdue,
    Route,
    SuspectCleared,
)
from mmsup.ipc.messages.keeper_control import (
    KeeperInventory,
    NotifySystemd,
    ReloadRequested,
    SaveCheckpoint,
    ShutdownFinished,
    StepDown,
    TerminateRequested,
    UpgradeRefused,
)
from mmsup.ipc.paths import control_socket
from mmsup.supervisor.api.control_socket import ControlSocket
from mmsup.supervisor.api.gateway_requests import GatewayRequests
from mmsup.supervisor.api.handlers import Handlers, Holdings
from mmsup.supervisor.api.socket_watch import SocketWatch
from mmsup.supervisor.api.status import ServerInfo, StatusViews
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller import recovery
from mmsup.supervisor.controller.change_signal import ChangeSignal
from mmsup.supervisor.controller.children import ChildRouter
from mmsup.supervisor.controller.event_console import MODEL_COLUMNS, EventConsole, model_rows
from mmsup.supervisor.controller.shutdown import shut_down
from mmsup.supervisor.controller.state_dir import StateDir
from mmsup.supervisor.controller.upgrade import Upgrader
from mmsup.supervisor.gateways.gateway_process import GatewayContext
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gpu.health_infirmary import GpuHealth
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.context import InstanceContext, KeeperSender
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.memory_sampler import MemorySampler
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.models import readiness, startup_policy
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ServerReadiness
from mmsup.supervisor.models.recycling import Recycler
from mmsup.supervisor.models.repository_watcher import RepositoryWatcher
from mmsup.supervisor.models.rolling_replacement import RollingReplacement
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.postmortem.collector import CrashCollector
from mmsup.supervisor.processes.cleanup import Cleanup
from mmsup.supervisor.processes.launch_spec import LaunchEnvironment
from mmsup.supervisor.repository.validation_report import collect_warnings
from mmsup.supervisor.resources.gpu_placement import GpuPlacement
from mmsup.supervisor.state.checkpoint import TEXT_LIMIT, Checkpoint, from_text, to_text

GATEWAY_LOG_NAME: Final = "_gateways"
CONTROL_LISTENER: Final = "control"


class Controller:
    """One per process."""

    def __init__(
        self,
        inventory: KeeperInventory,
        parent: KeeperSender,
        environ: Mapping[str, str],
        console: Console,
        cgroups: CgroupBackend,
    ) -> None:
        self.settings = settings = Settings.from_json(inventory.settings)
        self._inventory = inventory
        self._keeper = parent
        self._console = console
        self._recovered = from_text(inventory.checkpoint)
        self._remembered = ""
        self._sent_readiness: ServerReadiness | None = None
        self._announced = self._recovered is not None and self._recovered.announced
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.finished = asyncio.Event()
        """Finished was said: nothing is left to do but to leave."""
        self.change_signal = ChangeSignal()
        self.state_dir = StateDir(settings)
        self.state_dir.event_log.subscribe(EventConsole(console))
        place = LaunchEnvironment(environ, self.state_dir.scratch, settings.runtime_dir, len(os.sched_getaffinity(0)))
        site = GatewayContext(
            settings, place, parent, self.state_dir.event_log, self.state_dir.model_output(GATEWAY_LOG_NAME)
        )
        site.listeners = tuple(name for name in inventory.addresses if name != CONTROL_LISTENER)
        self._gateway_site = site
        self.model_set = ModelSet(settings.max_parallel_loads)
        self.gateways = GatewayPool(site, self)
        self._poison_requests = PoisonRegistry(self.state_dir.event_log, self.gateways.broadcast, self.save_checkpoint)
        self.loader = ModelLoader(
            settings, self.model_set, self.state_dir.desired_state, self.gateways, self.state_dir.event_log
        )
        self.rolling_replacement = RollingReplacement(self.model_set, self.change_signal.wait_until)
        self._socket_watch: SocketWatch | None = None
        self.repository_watcher = RepositoryWatcher(
            settings, self.model_set, self.state_dir.desired_state, self.loader, self.state_dir.event_log
        )
        self._crash_collector = CrashCollector(
            self.state_dir.crash_archive, self.state_dir.event_log, self.gateways.connected_numbers
        )
        recycling = Recycler(self.model_set, self.rolling_replacement, self.start_task)
        self._memory_sampler = MemorySampler(self.model_set.instances, recycling.check)
        self._connect(place, cgroups)
        self._server = ServerInfo(
            keeper_pid=inventory.keeper_pid,
            controller_pid=os.getpid(),
            controller_generation=inventory.generation,
            started_s=self._recovered.began_s if self._recovered else time.monotonic(),
            addresses=inventory.addresses,
            isolation=cgroups.describe(),
            readiness=self.readiness,
        )
        self.generation = inventory.generation
        self._upgrader = Upgrader(
            self, self._recovered.upgrade if self._recovered else None, inventory.keeper_generation
        )
        answers = StatusViews(
            self._server, self.model_set, self.gateways, self.state_dir.event_log, self._gpu_placement.rows
        )
        holdings, bundles = Holdings(self._poison_requests, self._gpu_placement), self._crash_collector.reports
        self.handlers = Handlers(
            answers, self.model_set, self.loader, self.state_dir, bundles, holdings, self._upgrader
        )
        self.control_socket = ControlSocket(self.handlers)
        self._gateway_requests = GatewayRequests(self.handlers, settings)
        self.child_router = ChildRouter(parent, self.model_set, self.gateways, inventory.children, self._begin)

    def _connect(self, place: LaunchEnvironment, cgroups: CgroupBackend) -> None:
        self.cleanup = Cleanup()
        self._gpu_monitor = GpuMonitor(self.state_dir.event_log, place.base_env, self.settings.gpu_driver)
        self._gpu_health = GpuHealth(self._gpu_monitor, self.state_dir.event_log, self.save_checkpoint)
        self._gpu_placement = GpuPlacement(self.model_set, self._gpu_monitor, self._gpu_health)
        self.model_set.set_context(
            InstanceContext(
                settings=self.settings,
                launch_environment=place,
                keeper=self._keeper,
                gateways=self.gateways,
                cgroups=cgroups,
                event_log=self.state_dir.event_log,
                model_output=self.state_dir.model_output,
                cleanup=self.cleanup,
                crash_collector=self._crash_collector,
                devices=self._gpu_placement,
                rng=random.Random(),
                on_change=self.model_set.on_instance_changed,
                on_progress=self.loader.on_progress,
                on_ready=self.model_set.on_instance_ready,
            )
        )
        self.model_set.on_reconciled = self._settled
        self.model_set.on_route = self.gateways.route
        self.model_set.on_unroute = self.gateways.unroute

    # The beginning.

    async def start(self, listener: socket.socket | None) -> None:
        """Take over or begin; then serve the control socket, if there is one."""
        self._crash_collector.start()
        self._memory_sampler.start()
        if self._recovered is not None:
            recovery.restore(self.model_set, self._recovered.models)
            self._poison_requests.restore(self._recovered.quarantine)
            self._gpu_health.restore(self._recovered.devices)
            self.model_set.next_instance_id = max(self.model_set.next_instance_id, self._recovered.next_instance)
            self.gateways.restore(self._recovered.gateways)
        else:
            await self._gpu_monitor.query_once()
        self.start_task(self._gpu_monitor.run(), "GPUs")
        failpoint("brain.restored")
        self.child_router.start()
        if listener is not None:
            await self.control_socket.start(listener)
            self._socket_watch = SocketWatch(control_socket(self.settings.runtime_dir), self._reopen)
            self._socket_watch.start()
        if self.settings.control_mode == "poll":
            self.start_task(self.repository_watcher.poll(), "poll")

    def _reopen(self, listener: socket.socket) -> None:
        self.start_task(self._open_again(listener), "control socket")

    async def _open_again(self, listener: socket.socket) -> None:
        self.state_dir.event_log.record(
            "control_reopened", "the control socket was removed or taken, and is there again"
        )
        await self.control_socket.start(listener)

    def _begin(self) -> None:
        """All children that there were have been introduced."""
        if self._recovered is None:
            self._begin_first()
        else:
            self._take_over()
        if self._inventory.stopping:
            self.terminate()

    def _begin_first(self) -> None:
        text = f"mmsup server, {self.settings.control_mode} mode, {self._server.isolation}"
        self.state_dir.event_log.record("server_start", text, keeper=self._inventory.keeper_pid)
        startup_policy.clean_scratch(self.state_dir.scratch)
        found = self.repository_watcher.scan()
        for each in collect_warnings(self.settings, found):
            self._console.log("warning", "configuration", place=each.place, text=each.text)
        startup_policy.start_models(found, self.settings, self.model_set, self.state_dir.desired_state, self.loader)
        failpoint("brain.begun")

    def _take_over(self) -> None:
        generation = self._inventory.generation
        self.state_dir.event_log.record("brain_exit", f"brain {generation - 1} ended; brain {generation} takes over")
        startup_policy.register_all(self.repository_watcher.scan(), self.settings, self.model_set)
        for model in self.model_set.models.values():
            model.had_outcome = self._announced
        counts = recovery.take_over(self.model_set)
        recovery.clean_up_unknown(self.model_set)
        text = f"kept {counts.kept} workers; {counts.ended} had ended, {self.child_router.unknown_children} were unknown and are ended"
        self.state_dir.event_log.record(
            "readopted",
            text,
            brain=generation,
            kept=counts.kept,
            ended=counts.ended,
            strays=self.child_router.unknown_children,
        )
        startup_policy.apply_desired_state(self.settings, self.model_set, self.state_dir.desired_state, self.loader)
        failpoint("brain.readopted")
        self._upgrader.resume()

    # What comes.

    def on_keeper_message(self, message: Any, descriptors: list[int]) -> None:  # one of FROM_KEEPER but Inventory
        """A message of the keeper's."""
        match message:
            case TerminateRequested():
                self.terminate()
            case ReloadRequested():
                self.start_task(self.repository_watcher.check(), "reload")
            case StepDown() | UpgradeRefused():
                self._upgrader.on_keeper_answer(message)
            case _:
                self.child_router.on_message(message, descriptors)

    def terminate(self) -> None:
        """Drain and end."""
        if not self.stopping:
            self.stopping = self._gateway_site.is_stopping = True
            self._upgrader.stop()
            self.start_task(shut_down(self), "end")

    def overdue(self, message: RequestOverdue) -> None:
        """A gateway waits for a worker."""
        instance = self._living(message.instance, message.generation)
        if instance is not None and instance.worker is not None and instance.worker.liveness_probe is not None:
            instance.worker.liveness_probe.check_overdue(message.age_s)

    def bad_reply(self, message: BadReply) -> None:
        """A worker broke the protocol towards a gateway."""
        instance = self._living(message.instance, message.generation)
        if instance is not None:
            instance.apply(lifecycle_events.ProtocolViolated(f"its answer was not valid: {message.text}"))

    def on_link_ended(self, place: int, message: LinkClosed) -> None:
        """A gateway tells what was in flight at the end of a life."""
        self._crash_collector.on_worker_ended(place, message)

    def suspected(self, message: PoisonSuspected | SuspectCleared) -> None:
        """A gateway has found out something about a request that may have ended a worker."""
        if isinstance(message, SuspectCleared):
            self._poison_requests.clear_suspect(message)
            return
        model, instance = self.model_set.model(message.name), self.model_set.instance(message.instance)
        edition = self.model_set.revision_of(instance) if instance is not None else None
        if edition is not None and model is not None and edition is model.active:  # else what it served is gone
            self._poison_requests.add_suspects(message, edition.content_id)

    def quarantine(self) -> list[AddPoisonEntries]:
        """What is known of requests that ended workers."""
        return self._poison_requests.messages()

    def _living(self, number: int, generation: int) -> Instance | None:
        instance = self.model_set.instance(number)
        return (
            instance
            if instance is not None and instance.worker_id == (number, generation) and instance.worker
            else None
        )

    def asked(self, message: CommandRequest, answer: Callable[[CommandReply], None]) -> None:
        """A gateway's client wants something."""
        failpoint("brain.asked")
        self.start_task(self._gateway_requests.answer(message, answer), f"ask {message.command:.20}")

    # What follows from any change.

    def routes(self) -> list[Route]:
        """Every model as it is now."""
        return self.model_set.routes()

    def readiness(self) -> ServerReadiness:
        """The server's."""
        return readiness.server_readiness(
            front=self.gateways.are_up(),
            draining=self.stopping,
            wanted=self.model_set.readiness(),
            strict=self.settings.strict_readiness,
        )

    def is_announced(self) -> bool:
        """Whether READY was said."""
        return self._announced

    def on_gateways_changed(self) -> None:
        """One came up, or went."""
        self._settled()

    def _settled(self) -> None:
        self.loader.decide_loads()
        models = self.model_set.models.values()
        self._poison_requests.drop_outdated(
            {each.name: each.active.content_id for each in models if each.active is not None}
        )
        self.save_checkpoint()
        self._say_readiness()
        self.change_signal.set()

    def _say_readiness(self) -> None:
        now = self.readiness()
        if now != self._sent_readiness:
            self._sent_readiness = now
            self.gateways.send_readiness(now)
            self._keeper.send(NotifySystemd(f"STATUS={'ready' if now.ready else now.reason}"))
        if (
            not self._announced
            and self.gateways.are_up()
            and all(each.has_outcome for each in self.model_set.readiness())
        ):
            self._announce(now)

    def _announce(self, now: ServerReadiness) -> None:
        self._announced = True
        failed = [each.name for each in self.model_set.readiness() if not each.serving]
        self._console.log_table(
            MODEL_COLUMNS, model_rows([self.model_set.models[name] for name in sorted(self.model_set.models)])
        )
        self.state_dir.event_log.record(
            "ready", now.reason or "every wanted model has its verdict", addresses=self._addresses()
        )
        self._keeper.send(NotifySystemd("READY=1"))
        self.save_checkpoint()
        if failed and self.settings.exit_on_error:
            self._console.log("error", "exit_on_error", text=f"not serving: {', '.join(failed)}")
            self.finish(exit_codes.REFUSED)

    def _addresses(self) -> dict[str, str]:
        return {name: each for name, each in self._inventory.addresses.items() if name != CONTROL_LISTENER}

    @property
    def is_checkpoint_complete(self) -> bool:
        """Whether the next brain will know what this one does."""
        return len(self._remembered) <= TEXT_LIMIT

    def save_checkpoint(self) -> None:
        """Let the keeper keep what the next brain needs to know, if that has changed."""
        models, gateways = recovery.model_records(self.model_set), self.gateways.records()
        quarantine, devices, upgrade = (
            self._poison_requests.records(),
            self._gpu_health.records(),
            self._upgrader.record,
        )
        first, told, following = self._server.started_s, self._announced, self.model_set.next_instance_id
        memory = Checkpoint(first, told, following, models, gateways, quarantine, devices, upgrade)
        text = to_text(memory)
        if text == self._remembered:
            return
        failpoint("brain.remember")
        if len(text) <= TEXT_LIMIT:
            self._keeper.send(SaveCheckpoint(text))
        elif len(self._remembered) <= TEXT_LIMIT:
            why = f"{len(text)} characters are too many: the next brain will not know what changes from here on"
            self._console.log("error", "not_remembered", text=why)
        self._remembered = text

    # The end.

    def start_task(self, work: Any, name: str) -> asyncio.Task[None]:  # a coroutine that returns None
        """Something that takes its time; awaited or cancelled by `close`."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def send_to_keeper(self, message: object) -> None:
        """Send one message of TO_KEEPER."""
        self._keeper.send(message)

    def finish(self, code: int) -> None:
        """Tell the keeper that it is over."""
        self._keeper.send(ShutdownFinished(code))
        self.finished.set()

    async def close(self) -> None:
        """Let go of everything that this process holds."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._socket_watch is not None:
            self._socket_watch.close()
        await self.control_socket.close()
        await self.loader.close()
        self._memory_sampler.close()
        await self._gpu_monitor.close()
        self.gateways.close()
        self.model_set.close()
        self.cleanup.close()
        self._crash_collector.close()
        self.state_dir.close()
