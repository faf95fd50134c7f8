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
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import gateway_control, keeper_control
from mmsup.ipc.paths import control_socket
from mmsup.supervisor.api.control_socket import Control
from mmsup.supervisor.api.gateway_requests import Clients
from mmsup.supervisor.api.handlers import Holdings, Verbs
from mmsup.supervisor.api.socket_watch import Doorway
from mmsup.supervisor.api.status import Answers, Server
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.controller import recovery
from mmsup.supervisor.controller.change_signal import Moved
from mmsup.supervisor.controller.children import Family
from mmsup.supervisor.controller.event_console import COLUMNS, EventLog, rows_of
from mmsup.supervisor.controller.shutdown import end
from mmsup.supervisor.controller.state_dir import Books
from mmsup.supervisor.controller.upgrade import Upgrades
from mmsup.supervisor.gateways.gateway_process import GatewaySite
from mmsup.supervisor.gateways.poison_requests import Quarantine
from mmsup.supervisor.gateways.pool import Gateways
from mmsup.supervisor.gpu.health_infirmary import Infirmary
from mmsup.supervisor.gpu.monitor import Lookout
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.context import KeeperSays, Site
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.memory_sampler import Sampler
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.models import readiness, startup_policy
from mmsup.supervisor.models.loader import Loads
from mmsup.supervisor.models.model_set import Fleet
from mmsup.supervisor.models.readiness import Readiness
from mmsup.supervisor.models.recycling import Recycling
from mmsup.supervisor.models.repository_watcher import Changes
from mmsup.supervisor.models.rolling_replacement import Renewals
from mmsup.supervisor.observability.console import Console
from mmsup.supervisor.postmortem.collector import Forensics
from mmsup.supervisor.processes.cleanup import Graves
from mmsup.supervisor.processes.launch_spec import Place
from mmsup.supervisor.repository.validation_report import concerns_of
from mmsup.supervisor.resources.gpu_placement import Devices
from mmsup.supervisor.state.checkpoint import TEXT_LIMIT, Memory, from_text, to_text

GATEWAYS: Final = "_gateways"
NOT_FOR_GATEWAYS: Final = "control"


class Brain:
    """One per process."""

    def __init__(
        self,
        inventory: keeper_control.Inventory,
        parent: KeeperSays,
        environ: Mapping[str, str],
        console: Console,
        cgroups: CgroupBackend,
    ) -> None:
        self.settings = settings = Settings.from_json(inventory.settings)
        self._inventory = inventory
        self._parent = parent
        self._console = console
        self._memory = from_text(inventory.remembered)
        self._remembered = ""
        self._said_ready: Readiness | None = None
        self._announced = self._memory is not None and self._memory.announced
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.over = asyncio.Event()
        """Finished was said: nothing is left to do but to leave."""
        self.moved = Moved()
        self.books = Books(settings)
        self.books.journal.follow(EventLog(console))
        place = Place(environ, self.books.scratch, settings.runtime_dir, len(os.sched_getaffinity(0)))
        site = GatewaySite(settings, place, parent, self.books.journal, self.books.logbook(GATEWAYS))
        site.listeners = tuple(name for name in inventory.addresses if name != NOT_FOR_GATEWAYS)
        self._gateway_site = site
        self.fleet = Fleet(settings.max_parallel_loads)
        self.gateways = Gateways(site, self)
        self._quarantine = Quarantine(self.books.journal, self.gateways.say, self.remember)
        self.loads = Loads(settings, self.fleet, self.books.wanted, self.gateways, self.books.journal)
        self.renewals = Renewals(self.fleet, self.moved.until)
        self._doorway: Doorway | None = None
        self.changes = Changes(settings, self.fleet, self.books.wanted, self.loads, self.books.journal)
        self._forensics = Forensics(self.books.deaths, self.books.journal, self.gateways.heard_from)
        recycling = Recycling(self.fleet, self.renewals, self.task)
        self._sampler = Sampler(self.fleet.instances, recycling.look)
        self._connect(place, cgroups)
        self._server = Server(
            keeper_pid=inventory.keeper_pid,
            brain_pid=os.getpid(),
            brain_generation=inventory.generation,
            began_s=self._memory.began_s if self._memory else time.monotonic(),
            addresses=inventory.addresses,
            isolation=cgroups.describe(),
            readiness=self.readiness,
        )
        self.generation = inventory.generation
        self._upgrades = Upgrades(self, self._memory.upgrade if self._memory else None, inventory.keeper_life)
        answers = Answers(self._server, self.fleet, self.gateways, self.books.journal, self._devices.rows)
        holdings, bundles = Holdings(self._quarantine, self._devices), self._forensics.bundles
        self.verbs = Verbs(answers, self.fleet, self.loads, self.books, bundles, holdings, self._upgrades)
        self.control = Control(self.verbs)
        self._clients = Clients(self.verbs, settings)
        self.family = Family(parent, self.fleet, self.gateways, inventory.children, self._begin)

    def _connect(self, place: Place, cgroups: CgroupBackend) -> None:
        self.graves = Graves()
        self._lookout = Lookout(self.books.journal, place.base_env, self.settings.gpu_driver)
        self._infirmary = Infirmary(self._lookout, self.books.journal, self.remember)
        self._devices = Devices(self.fleet, self._lookout, self._infirmary)
        self.fleet.use(
            Site(
                settings=self.settings,
                place=place,
                keeper=self._parent,
                gateways=self.gateways,
                cgroups=cgroups,
                journal=self.books.journal,
                logbook=self.books.logbook,
                graves=self.graves,
                forensics=self._forensics,
                devices=self._devices,
                rng=random.Random(),
                changed=self.fleet.changed,
                progress=self.loads.progress,
                ready=self.fleet.ready,
            )
        )
        self.fleet.on_settled = self._settled
        self.fleet.on_route = self.gateways.route
        self.fleet.on_unroute = self.gateways.unroute

    # The beginning.

    async def start(self, listener: socket.socket | None) -> None:
        """Take over or begin; then serve the control socket, if there is one."""
        self._forensics.start()
        self._sampler.start()
        if self._memory is not None:
            recovery.restore(self.fleet, self._memory.models)
            self._quarantine.restore(self._memory.quarantine)
            self._infirmary.restore(self._memory.devices)
            self.fleet.next_instance = max(self.fleet.next_instance, self._memory.next_instance)
            self.gateways.restore(self._memory.gateways)
        else:
            await self._lookout.learn()
        self.task(self._lookout.watch(), "GPUs")
        faultpoint("brain.restored")
        self.family.begin()
        if listener is not None:
            await self.control.start(listener)
            self._doorway = Doorway(control_socket(self.settings.runtime_dir), self._reopen)
            self._doorway.start()
        if self.settings.control_mode == "poll":
            self.task(self.changes.poll(), "poll")

    def _reopen(self, listener: socket.socket) -> None:
        self.task(self._open_again(listener), "control socket")

    async def _open_again(self, listener: socket.socket) -> None:
        self.books.journal.record("control_reopened", "the control socket was removed or taken, and is there again")
        await self.control.start(listener)

    def _begin(self) -> None:
        """All children that there were have been introduced."""
        if self._memory is None:
            self._begin_first()
        else:
            self._take_over()
        if self._inventory.stopping:
            self.terminate()

    def _begin_first(self) -> None:
        text = f"mmsup server, {self.settings.control_mode} mode, {self._server.isolation}"
        self.books.journal.record("server_start", text, keeper=self._inventory.keeper_pid)
        startup_policy.sweep(self.books.scratch)
        found = self.changes.read()
        for each in concerns_of(self.settings, found):
            self._console.say("warning", "configuration", place=each.place, text=each.text)
        startup_policy.start(found, self.settings, self.fleet, self.books.wanted, self.loads)
        faultpoint("brain.begun")

    def _take_over(self) -> None:
        generation = self._inventory.generation
        self.books.journal.record("brain_exit", f"brain {generation - 1} ended; brain {generation} takes over")
        startup_policy.know_all(self.changes.read(), self.settings, self.fleet)
        for model in self.fleet.models.values():
            model.was_decided = self._announced
        counts = recovery.take_over(self.fleet)
        recovery.clear(self.fleet)
        text = f"kept {counts.kept} workers; {counts.ended} had ended, {self.family.strays} were unknown and are ended"
        self.books.journal.record(
            "readopted", text, brain=generation, kept=counts.kept, ended=counts.ended, strays=self.family.strays
        )
        startup_policy.converge(self.settings, self.fleet, self.books.wanted, self.loads)
        faultpoint("brain.readopted")
        self._upgrades.resume()

    # What comes.

    def told(self, message: Any, descriptors: list[int]) -> None:  # one of FROM_KEEPER but Inventory
        """A message of the keeper's."""
        match message:
            case keeper_control.Terminate():
                self.terminate()
            case keeper_control.Reload():
                self.task(self.changes.look(), "reload")
            case keeper_control.StepDown() | keeper_control.NotUpgraded():
                self._upgrades.answered(message)
            case _:
                self.family.hear(message, descriptors)

    def terminate(self) -> None:
        """Drain and end."""
        if not self.stopping:
            self.stopping = self._gateway_site.is_stopping = True
            self._upgrades.stop()
            self.task(end(self), "end")

    def overdue(self, message: gateway_control.Overdue) -> None:
        """A gateway waits for a worker."""
        instance = self._living(message.instance, message.generation)
        if instance is not None and instance.tenure is not None and instance.tenure.watch is not None:
            instance.tenure.watch.overdue(message.age_s)

    def bad_reply(self, message: gateway_control.BadReply) -> None:
        """A worker broke the protocol towards a gateway."""
        instance = self._living(message.instance, message.generation)
        if instance is not None:
            instance.apply(lifecycle_events.Distrusted(f"its answer was not valid: {message.text}"))

    def link_ended(self, place: int, message: gateway_control.Ended) -> None:
        """A gateway tells what was in flight at the end of a life."""
        self._forensics.told(place, message)

    def suspected(self, message: gateway_control.Suspected | gateway_control.Lived) -> None:
        """A gateway has found out something about a request that may have ended a worker."""
        if isinstance(message, gateway_control.Lived):
            self._quarantine.lived(message)
            return
        model, instance = self.fleet.model(message.name), self.fleet.instance(message.instance)
        edition = self.fleet.edition_of(instance) if instance is not None else None
        if edition is not None and model is not None and edition is model.current:  # else what it served is gone
            self._quarantine.suspected(message, edition.mark)

    def quarantine(self) -> list[gateway_control.Quarantine]:
        """What is known of requests that ended workers."""
        return self._quarantine.lists()

    def _living(self, number: int, generation: int) -> Instance | None:
        instance = self.fleet.instance(number)
        return instance if instance is not None and instance.key == (number, generation) and instance.tenure else None

    def asked(self, message: gateway_control.Ask, answer: Callable[[gateway_control.Answer], None]) -> None:
        """A gateway's client wants something."""
        faultpoint("brain.asked")
        self.task(self._clients.answer(message, answer), f"ask {message.verb:.20}")

    # What follows from any change.

    def routes(self) -> list[gateway_control.Route]:
        """Every model as it is now."""
        return self.fleet.routes()

    def readiness(self) -> Readiness:
        """The server's."""
        return readiness.judge(
            front=self.gateways.are_up(),
            draining=self.stopping,
            wanted=self.fleet.standings(),
            strict=self.settings.strict_readiness,
        )

    def is_announced(self) -> bool:
        """Whether READY was said."""
        return self._announced

    def gateways_changed(self) -> None:
        """One came up, or went."""
        self._settled()

    def _settled(self) -> None:
        self.loads.settled()
        models = self.fleet.models.values()
        self._quarantine.compare({each.name: each.current.mark for each in models if each.current is not None})
        self.remember()
        self._say_readiness()
        self.moved.set()

    def _say_readiness(self) -> None:
        now = self.readiness()
        if now != self._said_ready:
            self._said_ready = now
            self.gateways.sync(now)
            self._parent.say(keeper_control.Notify(f"STATUS={'ready' if now.ready else now.reason}"))
        if not self._announced and self.gateways.are_up() and all(each.decided for each in self.fleet.standings()):
            self._announce(now)

    def _announce(self, now: Readiness) -> None:
        self._announced = True
        failed = [each.name for each in self.fleet.standings() if not each.serving]
        self._console.table(COLUMNS, rows_of([self.fleet.models[name] for name in sorted(self.fleet.models)]))
        self.books.journal.record(
            "ready", now.reason or "every wanted model has its verdict", addresses=self._addresses()
        )
        self._parent.say(keeper_control.Notify("READY=1"))
        self.remember()
        if failed and self.settings.exit_on_error:
            self._console.say("error", "exit_on_error", text=f"not serving: {', '.join(failed)}")
            self.finish(exit_codes.REFUSED)

    def _addresses(self) -> dict[str, str]:
        return {name: each for name, each in self._inventory.addresses.items() if name != NOT_FOR_GATEWAYS}

    @property
    def is_remembered(self) -> bool:
        """Whether the next brain will know what this one does."""
        return len(self._remembered) <= TEXT_LIMIT

    def remember(self) -> None:
        """Let the keeper keep what the next brain needs to know, if that has changed."""
        models, gateways = recovery.notes(self.fleet), self.gateways.notes()
        quarantine, devices, upgrade = self._quarantine.notes(), self._infirmary.notes(), self._upgrades.note
        first, told, following = self._server.began_s, self._announced, self.fleet.next_instance
        memory = Memory(first, told, following, models, gateways, quarantine, devices, upgrade)
        text = to_text(memory)
        if text == self._remembered:
            return
        faultpoint("brain.remember")
        if len(text) <= TEXT_LIMIT:
            self._parent.say(keeper_control.Remember(text))
        elif len(self._remembered) <= TEXT_LIMIT:
            why = f"{len(text)} characters are too many: the next brain will not know what changes from here on"
            self._console.say("error", "not_remembered", text=why)
        self._remembered = text

    # The end.

    def task(self, work: Any, name: str) -> asyncio.Task[None]:  # a coroutine that returns None
        """Something that takes its time; awaited or cancelled by `close`."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def tell_keeper(self, message: object) -> None:
        """Send one message of TO_KEEPER."""
        self._parent.say(message)

    def finish(self, code: int) -> None:
        """Tell the keeper that it is over."""
        self._parent.say(keeper_control.Finished(code))
        self.over.set()

    async def close(self) -> None:
        """Let go of everything that this process holds."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._doorway is not None:
            self._doorway.close()
        await self.control.close()
        await self.loads.close()
        self._sampler.close()
        await self._lookout.close()
        self.gateways.close()
        self.fleet.close()
        self.graves.close()
        self._forensics.close()
        self.books.close()
