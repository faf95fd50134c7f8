"""One run from its first request to its last look: clients, nemesis and watchers, side by side in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.supervisor.chaos.clients.load import PAYLOAD_SIZES, LoadGenerator, RequestRate
from mmsup.supervisor.chaos.clients.protocol import ProtocolAdapter
from mmsup.supervisor.chaos.inject.context import FaultContext
from mmsup.supervisor.chaos.inject.injectors import inject
from mmsup.supervisor.chaos.observe import leak_check
from mmsup.supervisor.chaos.observe.event_follower import EventFollower
from mmsup.supervisor.chaos.observe.history import FaultInjected, History, LeakReport, RunStarted, ServedCounts
from mmsup.supervisor.chaos.observe.worker_watch import WorkerWatch
from mmsup.supervisor.chaos.plan.catalog import FaultClass, ModelRole, possible_faults
from mmsup.supervisor.chaos.plan.nemesis import FaultWindow, PlannedFault, plan
from mmsup.supervisor.chaos.server.target import Target

SETTLE_LIMIT_S: Final = 60.0
"""How long a server may take to come to rest after its start."""
POLL_S: Final = 0.2
SUCCESS_METRIC: Final = "nv_inference_request_success"
FAULTY_RATE_SHARE: Final = 0.5
"""What a faulty model is asked, beside a healthy one."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What a run is to be."""

    seed: int
    seconds: float
    interval_s: tuple[float, float]
    rate: float
    """Requests a second to each healthy model."""
    faults: tuple[FaultClass, ...]
    models: Mapping[str, ModelRole]
    fault_free_s: float | None = None
    """How long there are no faults; a sixth of the run if nothing is said."""
    cooldown_s: float = 8.0
    """After the last fault the clients go on for so long, to see its victim come back."""
    settle_s: float = 20.0
    """How long what was set in motion may take to come to rest; leftovers are looked for until then."""
    request_timeout_s: float = 60.0
    """After so long a request without an answer counts as lost."""
    wait_for_recovery: bool = False
    """A fault waits until every victim is back, and the run takes longer by that; else it is passed over where its own
    is not."""

    @property
    def baseline_s(self) -> float:
        """Until then there are no faults."""
        return self.seconds / 6 if self.fault_free_s is None else self.fault_free_s


@dataclass(slots=True)
class ChaosRun:
    """A run against a target."""

    target: Target
    adapter: ProtocolAdapter
    load: LoadGenerator
    history: History
    options: ChaosOptions
    header: RunStarted
    """What stands over the history; the times are filled in when it begins."""
    progress: Callable[[str], None]
    active: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])
    """Victims, with what is done to them until they are back."""
    rates: list[RequestRate] = field(default_factory=list[RequestRate])

    async def __call__(self) -> None:
        """Everything; when it returns the history is whole, but for the server's end."""
        lives = WorkerWatch(self.history)
        if self.target.runtime_dir:
            self.load.on_answer = lives.on_answer
        elif self.target.operator is not None:
            self.load.on_answer = self.target.operator.on_answer
        await self._record_counts()
        await self._warm_up()
        before = await self._stable_snapshot()
        try:
            async with self._following_events():
                await self._run_load_and_faults(lives)
        finally:
            lives.close()
        self.target.client.close()
        await self._record_counts()
        if before is not None:
            await self._check_leaks(before)

    async def _run_load_and_faults(self, lives: WorkerWatch) -> None:
        scene = FaultContext(self.target, self.adapter, self.load, lives, self.history, {})
        course, from_s = self.options, self.history.now()
        until_s = from_s + course.seconds
        self.history.add(replace(self.header, from_s=from_s, calm_s=from_s + course.baseline_s))
        season = FaultWindow(from_s + course.baseline_s, until_s - course.cooldown_s, course.interval_s)
        faults = possible_faults(course.faults, self.target.capabilities())
        strikes = plan(course.seed, season, self.target.models, faults)
        async with asyncio.TaskGroup() as group:
            for index, (model, role) in enumerate(self.target.models.items()):
                rng = random.Random(f"{course.seed} {index}")
                rate = RequestRate(
                    course.rate * (1.0 if role == ModelRole.HEALTHY else FAULTY_RATE_SHARE),
                    math.inf if course.wait_for_recovery else until_s,
                )
                self.rates.append(rate)
                group.create_task(self.load.run_model(model, rate, rng))
            group.create_task(self._inject_all(scene, strikes))

    async def _inject_all(self, scene: FaultContext, strikes: list[PlannedFault]) -> None:
        late_s = 0.0
        async with asyncio.TaskGroup() as group:
            for number, strike in enumerate(strikes, 1):
                await asyncio.sleep(max(0.0, strike.at_s + late_s - self.history.now()))
                if self.options.wait_for_recovery and self.active:
                    await asyncio.wait(self.active.values())
                    await asyncio.sleep(self.options.interval_s[0])
                    late_s = self.history.now() - strike.at_s
                fault, victim = strike.fault.name, strike.victim
                self.progress(f"{self.history.now():5.0f} s  {number}/{len(strikes)}  {fault} {victim}")
                if victim in self.active:
                    note = "it has not rested"
                    self.history.add(
                        FaultInjected(self.history.now(), strike.number, fault, victim, done=False, note=note)
                    )
                    continue
                self.active[victim] = group.create_task(self._inject_one(scene, strike))
        if self.options.wait_for_recovery:
            for each in self.rates:
                each.until_s = self.history.now() + self.options.cooldown_s

    async def _inject_one(self, scene: FaultContext, strike: PlannedFault) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inject(scene, strike))
                if self.target.operator is not None:
                    group.create_task(self.target.operator.repair())
        finally:
            del self.active[strike.victim]

    async def _warm_up(self) -> None:
        """Every size of request to every model, so that memory and connections for them are there before."""
        for model in self.target.models:
            for size in sorted(set(PAYLOAD_SIZES)):
                await self.load.send(model, size)

    @contextlib.asynccontextmanager
    async def _following_events(self) -> AsyncIterator[None]:
        """The journal, followed as long as the block lasts, and read to its end afterwards."""
        if not self.target.runtime_dir:
            yield
            return
        journal = EventFollower(self.target.runtime_dir, self.history)
        following = asyncio.get_running_loop().create_task(journal.follow(), name="journal")
        try:
            yield
            await journal.catch_up()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _record_counts(self) -> None:
        """What the server says that it has served."""
        success: dict[str, float] = {}
        for name, model, value in await self.target.metric_samples():
            if name == SUCCESS_METRIC and model in self.target.models:
                success[model] = success.get(model, 0.0) + value
        if success:
            self.history.add(ServedCounts(self.history.now(), success))

    # Leftovers.

    async def _stable_snapshot(self) -> leak_check.Snapshot | None:
        """What it holds when nothing moves; None where that cannot be seen."""
        if not self.target.runtime_dir:
            return None
        self.target.client.close()
        await self._wait_for_standby()
        seen = await self._snapshot()
        async with asyncio.timeout(SETTLE_LIMIT_S):
            while leak_check.differences(seen, again := await self._snapshot()):
                seen = again
        return seen

    async def _wait_for_standby(self) -> None:
        """It comes up when the server has been calm for a while."""
        end = self.history.now() + SETTLE_LIMIT_S
        while self.history.now() < end:
            found = (await self.target.status()).get("spare_gateways", {"wanted": 0, "ready": 0})
            if found["ready"] >= found["wanted"]:
                return
            await asyncio.sleep(POLL_S)

    async def _check_leaks(self, before: leak_check.Snapshot) -> None:
        """What is left behind, once nothing goes away any more."""
        end = self.history.now() + self.options.settle_s
        while True:
            after = await self._snapshot()
            found = leak_check.differences(before, after)
            if not found or self.history.now() > end:
                break
            await asyncio.sleep(POLL_S)
        self.history.add(
            LeakReport(self.history.now(), "after the faults", found, leak_check.leak_counts(before, after))
        )

    async def _snapshot(self) -> leak_check.Snapshot:
        while True:
            with contextlib.suppress(OSError):  # something ended while it was looked at
                samples, status = await self.target.metric_samples(), await self.target.status()
                return leak_check.take_snapshot(status["keeper"]["pid"], self.target.runtime_dir, samples)
            await asyncio.sleep(POLL_S)
