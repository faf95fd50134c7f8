"""One run from its first request to its last look: clients, nemesis and watchers, side by side in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.supervisor.chaos.clients.load import SIZES, Clients, Rate
from mmsup.supervisor.chaos.clients.protocol import Driver
from mmsup.supervisor.chaos.inject.context import Scene
from mmsup.supervisor.chaos.inject.injectors import inject
from mmsup.supervisor.chaos.observe import leak_check
from mmsup.supervisor.chaos.observe.event_follower import Journal
from mmsup.supervisor.chaos.observe.history import Began, Counted, History, Injected, Left
from mmsup.supervisor.chaos.observe.worker_watch import Lives
from mmsup.supervisor.chaos.plan.catalog import Fault, Role, possible
from mmsup.supervisor.chaos.plan.nemesis import Season, Strike, plan
from mmsup.supervisor.chaos.server.target import Target

REST_S: Final = 60.0
"""How long a server may take to come to rest after its start."""
LOOK_S: Final = 0.2
SUCCESS: Final = "nv_inference_request_success"
SHARE_OF_FAULTY: Final = 0.5
"""What a faulty model is asked, beside a healthy one."""


@dataclass(frozen=True, slots=True)
class Course:
    """What a run is to be."""

    seed: int
    seconds: float
    every_s: tuple[float, float]
    rate: float
    """Requests a second to each healthy model."""
    faults: tuple[Fault, ...]
    models: Mapping[str, Role]
    before_s: float | None = None
    """How long there are no faults; a sixth of the run if nothing is said."""
    tail_s: float = 8.0
    """After the last fault the clients go on for so long, to see its victim come back."""
    settle_s: float = 20.0
    """How long what was set in motion may take to come to rest; leftovers are looked for until then."""
    patience_s: float = 60.0
    """After so long a request without an answer counts as lost."""
    waits: bool = False
    """A fault waits until every victim is back, and the run takes longer by that; else it is passed over where its own
    is not."""

    @property
    def calm_s(self) -> float:
        """Until then there are no faults."""
        return self.seconds / 6 if self.before_s is None else self.before_s


@dataclass(slots=True)
class Run:
    """A run against a target."""

    target: Target
    driver: Driver
    clients: Clients
    history: History
    course: Course
    title: Began
    """What stands over the history; the times are filled in when it begins."""
    progress: Callable[[str], None]
    hurt: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])
    """Victims, with what is done to them until they are back."""
    rates: list[Rate] = field(default_factory=list[Rate])

    async def __call__(self) -> None:
        """Everything; when it returns the history is whole, but for the server's end."""
        lives = Lives(self.history)
        if self.target.runtime_dir:
            self.clients.on_answer = lives.seen
        elif self.target.tender is not None:
            self.clients.on_answer = self.target.tender.answered
        await self._count()
        await self._warm()
        before = await self._settled()
        try:
            async with self._following():
                await self._together(lives)
        finally:
            lives.close()
        self.target.door.close()
        await self._count()
        if before is not None:
            await self._look(before)

    async def _together(self, lives: Lives) -> None:
        scene = Scene(self.target, self.driver, self.clients, lives, self.history, {})
        course, from_s = self.course, self.history.now()
        until_s = from_s + course.seconds
        self.history.add(replace(self.title, from_s=from_s, calm_s=from_s + course.calm_s))
        season = Season(from_s + course.calm_s, until_s - course.tail_s, course.every_s)
        faults = possible(course.faults, self.target.means())
        strikes = plan(course.seed, season, self.target.models, faults)
        async with asyncio.TaskGroup() as group:
            for index, (model, role) in enumerate(self.target.models.items()):
                rng = random.Random(f"{course.seed} {index}")
                rate = Rate(
                    course.rate * (1.0 if role == Role.HEALTHY else SHARE_OF_FAULTY),
                    math.inf if course.waits else until_s,
                )
                self.rates.append(rate)
                group.create_task(self.clients.flow(model, rate, rng))
            group.create_task(self._strike_all(scene, strikes))

    async def _strike_all(self, scene: Scene, strikes: list[Strike]) -> None:
        late_s = 0.0
        async with asyncio.TaskGroup() as group:
            for number, strike in enumerate(strikes, 1):
                await asyncio.sleep(max(0.0, strike.at_s + late_s - self.history.now()))
                if self.course.waits and self.hurt:
                    await asyncio.wait(self.hurt.values())
                    await asyncio.sleep(self.course.every_s[0])
                    late_s = self.history.now() - strike.at_s
                fault, victim = strike.fault.name, strike.victim
                self.progress(f"{self.history.now():5.0f} s  {number}/{len(strikes)}  {fault} {victim}")
                if victim in self.hurt:
                    note = "it has not rested"
                    self.history.add(Injected(self.history.now(), strike.number, fault, victim, done=False, note=note))
                    continue
                self.hurt[victim] = group.create_task(self._strike(scene, strike))
        if self.course.waits:
            for each in self.rates:
                each.until_s = self.history.now() + self.course.tail_s

    async def _strike(self, scene: Scene, strike: Strike) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inject(scene, strike))
                if self.target.tender is not None:
                    group.create_task(self.target.tender.tend())
        finally:
            del self.hurt[strike.victim]

    async def _warm(self) -> None:
        """Every size of request to every model, so that memory and connections for them are there before."""
        for model in self.target.models:
            for size in sorted(set(SIZES)):
                await self.clients.ask(model, size)

    @contextlib.asynccontextmanager
    async def _following(self) -> AsyncIterator[None]:
        """The journal, followed as long as the block lasts, and read to its end afterwards."""
        if not self.target.runtime_dir:
            yield
            return
        journal = Journal(self.target.runtime_dir, self.history)
        following = asyncio.get_running_loop().create_task(journal.follow(), name="journal")
        try:
            yield
            await journal.catch_up()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _count(self) -> None:
        """What the server says that it has served."""
        success: dict[str, float] = {}
        for name, model, value in await self.target.samples():
            if name == SUCCESS and model in self.target.models:
                success[model] = success.get(model, 0.0) + value
        if success:
            self.history.add(Counted(self.history.now(), success))

    # Leftovers.

    async def _settled(self) -> leak_check.Snapshot | None:
        """What it holds when nothing moves; None where that cannot be seen."""
        if not self.target.runtime_dir:
            return None
        self.target.door.close()
        await self._spare()
        seen = await self._snapshot()
        async with asyncio.timeout(REST_S):
            while leak_check.differences(seen, again := await self._snapshot()):
                seen = again
        return seen

    async def _spare(self) -> None:
        """It comes up when the server has been calm for a while."""
        end = self.history.now() + REST_S
        while self.history.now() < end:
            found = (await self.target.status()).get("spare_gateways", {"wanted": 0, "ready": 0})
            if found["ready"] >= found["wanted"]:
                return
            await asyncio.sleep(LOOK_S)

    async def _look(self, before: leak_check.Snapshot) -> None:
        """What is left behind, once nothing goes away any more."""
        end = self.history.now() + self.course.settle_s
        while True:
            after = await self._snapshot()
            found = leak_check.differences(before, after)
            if not found or self.history.now() > end:
                break
            await asyncio.sleep(LOOK_S)
        self.history.add(Left(self.history.now(), "after the faults", found, leak_check.counts(before, after)))

    async def _snapshot(self) -> leak_check.Snapshot:
        while True:
            with contextlib.suppress(OSError):  # something ended while it was looked at
                samples, status = await self.target.samples(), await self.target.status()
                return leak_check.snapshot(status["keeper"]["pid"], self.target.runtime_dir, samples)
            await asyncio.sleep(LOOK_S)
