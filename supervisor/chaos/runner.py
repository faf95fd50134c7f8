"""One run: load, faults and watchers side by side in one event loop, on a server started for it or one that runs."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.clients.load import PAYLOAD_SIZES, LoadGenerator, RequestRate
from mmsup.supervisor.chaos.clients.protocol import ProtocolAdapter
from mmsup.supervisor.chaos.clients.rpc_protocol import RpcAdapter
from mmsup.supervisor.chaos.clients.sequences import ClientSequences
from mmsup.supervisor.chaos.inject.context import FaultContext
from mmsup.supervisor.chaos.inject.injectors import inject
from mmsup.supervisor.chaos.observe import leak_check
from mmsup.supervisor.chaos.observe.event_follower import EventFollower
from mmsup.supervisor.chaos.observe.history import History, LeakReport, RequestOutcome, RunStarted, ServedCounts
from mmsup.supervisor.chaos.observe.worker_watch import WorkerWatch
from mmsup.supervisor.chaos.plan.catalog import GRPC, FaultClass, ModelRole, hit_together, possible_faults
from mmsup.supervisor.chaos.plan.nemesis import FaultWindow, PlannedFault, plan
from mmsup.supervisor.chaos.server.host_info import describe_host
from mmsup.supervisor.chaos.server.local_server import STOP_S, has_batch_axis, running_server
from mmsup.supervisor.chaos.server.target import Target

SETTLE_LIMIT_S: Final = 60.0
"""How long a server may take after its start until its resources no longer change."""
POLL_S: Final = 0.2
SUCCESS_METRIC: Final = "nv_inference_request_success"
KNOWN_METRIC: Final = "mmsup_known_requests_total"
FAULTY_RATE_SHARE: Final = 0.5
"""Request rate of a faulty model, as a share of a healthy one's."""
_ASKED_BY_FAULTS: Final = (ModelRole.ON_DEMAND, ModelRole.MOVABLE)
"""Each request to these would be a load or a move, or have another model put to sleep."""
_ASKED_BY_GRPC: Final = (ModelRole.HEALTHY, ModelRole.CRASHY)
RPC_RATE_SHARE: Final = 0.25
"""Request rate over gRPC, as a share of that over HTTP."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """The parameters of a run; times in seconds."""

    seed: int
    seconds: float
    interval_s: tuple[float, float]
    rate: float
    """Requests per second to each healthy model."""
    faults: tuple[FaultClass, ...]
    models: Mapping[str, ModelRole]
    fault_free_s: float | None = None
    """How long there are no faults; by default a sixth of the run."""
    cooldown_s: float = 8.0
    """How long the load continues after the last fault, to observe its victim's recovery."""
    settle_s: float = 20.0
    """How long resources may take to be released after the run, until they count as leaked."""
    request_timeout_s: float = 60.0
    grpc_front: str = ""
    """What serves gRPC in a server of its own, to which calls go over gRPC too; empty: none go."""
    wait_for_recovery: bool = False
    """Inject a fault only when every victim has recovered, extending the run; else skip faults whose own has not."""

    @property
    def baseline_s(self) -> float:
        return self.seconds / 6 if self.fault_free_s is None else self.fault_free_s


@dataclass(slots=True)
class ChaosRun:
    target: Target
    adapter: ProtocolAdapter
    load: LoadGenerator
    history: History
    options: ChaosOptions
    header: RunStarted
    """First record of the history; its times are set when the load starts."""
    progress: Progress
    active: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])
    """Faults in progress, by victim."""
    rates: list[RequestRate] = field(default_factory=list[RequestRate])
    rpc_load: LoadGenerator | None = None
    """Load over gRPC."""

    async def run(self) -> None:
        """The whole run; returns when the history is complete, except for the server's shutdown."""
        workers = WorkerWatch(self.history)
        if self.target.runtime_dir:
            self.load.on_answer = workers.on_answer
            if self.rpc_load is not None:
                self.rpc_load.on_answer = workers.on_answer
        elif self.target.operator is not None:
            self.load.on_answer = self.target.operator.on_answer
        await self._record_counts()
        await self._warm_up()
        before = await self._stable_snapshot()
        try:
            async with self._following_events():
                await self._run_load_and_faults(workers)
        finally:
            workers.close()
        await self.target.close()
        await self._record_counts()
        if before is not None:
            await self._check_leaks(before)

    async def _run_load_and_faults(self, workers: WorkerWatch) -> None:
        context = FaultContext(self.target, self.adapter, self.load, workers, self.history, {}, self.rpc_load)
        options, start_s = self.options, self.history.now()
        end_s = start_s + options.seconds
        self.history.add(replace(self.header, from_s=start_s, calm_s=start_s + options.baseline_s))
        window = FaultWindow(start_s + options.baseline_s, end_s - options.cooldown_s, options.interval_s)
        faults = possible_faults(options.faults, self.target.capabilities())
        planned = plan(options.seed, window, self.target.models, faults)
        async with asyncio.TaskGroup() as group:
            for index, (model, role) in enumerate(self.target.models.items()):
                if role in _ASKED_BY_FAULTS:
                    continue
                rng = random.Random(f"{options.seed} {index}")
                per_s = options.rate * (1.0 if role == ModelRole.HEALTHY else FAULTY_RATE_SHARE)
                rate = RequestRate(per_s, math.inf if options.wait_for_recovery else end_s)
                self.rates.append(rate)
                group.create_task(self.load.run_model(model, rate, rng))
                if self.rpc_load is not None and role in _ASKED_BY_GRPC:
                    rpc_rate = RequestRate(per_s * RPC_RATE_SHARE, rate.until_s)
                    self.rates.append(rpc_rate)
                    rng = random.Random(f"{options.seed} {index} grpc")
                    group.create_task(self.rpc_load.run_model(model, rpc_rate, rng))
            group.create_task(self._inject_all(context, planned))

    async def _inject_all(self, context: FaultContext, planned: list[PlannedFault]) -> None:
        delay_s = 0.0
        async with asyncio.TaskGroup() as group:
            for index, fault in enumerate(planned, 1):
                await asyncio.sleep(max(0.0, fault.at_s + delay_s - self.history.now()))
                if self.options.wait_for_recovery and self.active:
                    await asyncio.wait(self.active.values())
                    await asyncio.sleep(self.options.interval_s[0])
                    delay_s = self.history.now() - fault.at_s
                text = f"{index}/{len(planned)}  {fault.fault_class.name} {fault.victim}"
                self.progress(f"{self.history.now():5.0f} s  {text}")
                if not self.active.keys().isdisjoint(hit_together(fault.victim, self.target.models)):
                    context.record_start(fault, done=False, note="its victim has not recovered")
                    continue
                self.active[fault.victim] = group.create_task(self._inject_one(context, fault))
        if self.options.wait_for_recovery:
            for each in self.rates:
                each.until_s = self.history.now() + self.options.cooldown_s

    async def _inject_one(self, context: FaultContext, fault: PlannedFault) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inject(context, fault))
                if self.target.operator is not None:
                    group.create_task(self.target.operator.repair())
        finally:
            del self.active[fault.victim]

    async def _warm_up(self) -> None:
        """Send every payload size to every model, so that connections and shared memory exist."""
        for model, role in self.target.models.items():
            for size in sorted(set(PAYLOAD_SIZES)):
                await self.load.send(model, size)
                if self.rpc_load is not None and role in _ASKED_BY_GRPC:
                    await self.rpc_load.send(model, size)

    @contextlib.asynccontextmanager
    async def _following_events(self) -> AsyncIterator[None]:
        """Record the server's events during the block, and those that are still pending after it."""
        if not self.target.runtime_dir:
            yield
            return
        follower = EventFollower(self.target.runtime_dir, self.history)
        following = asyncio.get_running_loop().create_task(follower.follow(), name="events")
        try:
            yield
            await follower.catch_up()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _record_counts(self) -> None:
        """Record how many requests the server's metrics count as successful."""
        success: dict[str, float] = {}
        known = 0.0
        for name, model, value in await self.target.metric_samples():
            if name == SUCCESS_METRIC and model in self.target.models:
                success[model] = success.get(model, 0.0) + value
            elif name == KNOWN_METRIC and model in self.target.models:
                known += value
        if success:
            self.history.add(ServedCounts(self.history.now(), success, known))

    async def _stable_snapshot(self) -> leak_check.Snapshot | None:
        """The server's resources once they no longer change; None for a server elsewhere."""
        if not self.target.runtime_dir:
            return None
        await self.target.close()
        await self._sleep_on_demand()
        await self._wait_for_standby()
        snapshot = await self._snapshot()
        async with asyncio.timeout(SETTLE_LIMIT_S):
            while leak_check.differences(snapshot, again := await self._snapshot()):
                snapshot = again
        return snapshot

    async def _sleep_on_demand(self) -> None:
        """Put models on demand to sleep: which of them are loaded is chance, and no leak."""
        for model, role in self.target.models.items():
            if role == ModelRole.ON_DEMAND:
                await self.target.by_hand(model, "sleep")

    async def _wait_for_standby(self) -> None:
        """Wait for the standby gateway, which is started when the server has been idle for a while."""
        deadline_s = self.history.now() + SETTLE_LIMIT_S
        while self.history.now() < deadline_s:
            standby = (await self.target.status()).get("spare_gateways", {"wanted": 0, "ready": 0})
            if standby["ready"] >= standby["wanted"]:
                return
            await asyncio.sleep(POLL_S)

    async def _check_leaks(self, before: leak_check.Snapshot) -> None:
        """Record what leaked, as soon as nothing did or `settle_s` is over."""
        await self._sleep_on_demand()
        deadline_s = self.history.now() + self.options.settle_s
        while True:
            after = await self._snapshot()
            found = leak_check.differences(before, after)
            if not found or self.history.now() > deadline_s:
                break
            await asyncio.sleep(POLL_S)
        counts = leak_check.leak_counts(before, after)
        self.history.add(LeakReport(self.history.now(), "after the faults", found, counts))

    async def _snapshot(self) -> leak_check.Snapshot:
        while True:
            with contextlib.suppress(OSError):  # a process exited meanwhile
                samples, status = await self.target.metric_samples(), await self.target.status()
                return leak_check.take_snapshot(status["keeper"]["pid"], self.target.runtime_dir, samples)
            await asyncio.sleep(POLL_S)


async def run_local(
    options: ChaosOptions, adapter: ProtocolAdapter, history: History, progress: Progress, python: str = sys.executable
) -> None:
    """Start a server with `options.models` on the interpreter `python`, run against it, stop it, check for leaks."""
    async with running_server(options.models, python, options.grpc_front) as (server, target):
        await run_against(target, options, adapter, history, progress)
        pids = leak_check.process_tree(server.manager.pid)
        cgroups = leak_check.cgroup_directories(pids)
        status = await server.manager.stop(STOP_S)
        found = leak_check.survivors(pids, cgroups)
        if status != exit_codes.SUCCESS:
            found.append(f"the server exited with {status}")
        counts = {"cgroups": sum(each.exists() for each in cgroups)}
        history.add(LeakReport(history.now(), "after the end", found, counts))


async def run_against(
    target: Target, options: ChaosOptions, adapter: ProtocolAdapter, history: History, progress: Progress
) -> None:
    load = LoadGenerator(target.client, adapter, history, target.models, options.request_timeout_s)
    sequenced = [name for name, role in target.models.items() if role == ModelRole.SEQUENCED]
    load.sequences = {name: ClientSequences() for name in sequenced}
    rpc_load = None
    if target.rpc is not None:
        rpc_adapter = RpcAdapter(has_batch_axis=has_batch_axis)
        rpc_load = LoadGenerator(target.rpc, rpc_adapter, history, target.models, options.request_timeout_s)
        rpc_load.numbers, rpc_load.via = load.numbers, GRPC
    header = RunStarted(
        options.seed,
        options.seconds,
        {name: role.value for name, role in target.models.items()},
        describe_host(),
        target.title,
        shlex.join(["mmsup", *sys.argv[1:]]),
        own_codes=bool(target.runtime_dir),
    )
    try:
        await ChaosRun(target, adapter, load, history, options, header, progress, rpc_load=rpc_load).run()
    finally:
        await target.close()
        for number in target.client.unexpected + (target.metrics.unexpected if target.metrics else []):
            history.add(RequestOutcome(history.now(), number, "stray"))
