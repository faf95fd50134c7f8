"""Loads among workers that are played: what is booked, who waits for whom, what is refused and comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.capacity.admission import Admit, Claim, DeviceMemory, Pool, Refuse, RoomRequest
from mmsup.supervisor.capacity.budget import MemoryBudgets
from mmsup.supervisor.capacity.footprint import Footprint, footprint_key
from mmsup.supervisor.capacity.footprint_meter import FootprintMeter
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.capacity.memory_accounts import MemoryAccounts
from mmsup.supervisor.capacity.memory_admission import RESERVED_BYTES, MemoryAdmission
from mmsup.supervisor.gpu.memory_release import GpuUsage
from mmsup.supervisor.instances.context import MemoryRefused
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.recycle_policy import RecycleState
from mmsup.supervisor.instances.worker_process import GpuAssignment
from mmsup.supervisor.linux.cgroup import Cgroup, CgroupUsage

MIB = 1 << 20
GPU = "GPU-1"
DEMAND = "on-demand"
State = InstanceState


class Machine:
    """Instances with workers that hold what a test says, and their admission."""

    def __init__(self, home: Path, devices: dict[str, int] | None = None, *, is_configured: bool = True) -> None:
        self.home = home
        self.instances: list[Any] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.shared: list[Claim] = []
        self.counts: Mapping[str, int] = {}
        self.written: list[bytes] = []
        self.evicted: list[tuple[str, str]] = []
        self.reserve = 0
        self.store = FootprintStore(home / "footprints.json")

        def run_on_disk(_: Callable[[bytes], None], contents: bytes) -> None:
            self.written.append(contents)

        def find_device(uuid: str) -> DeviceMemory | None:
            return DeviceMemory("cuda:0 (card)", ("cuda:0", uuid), 500 * MIB)

        self.meter = FootprintMeter(self.store, lambda each: str(getattr(each, "digest", "")), run_on_disk)
        budgets = MemoryBudgets(1000 * MIB, is_configured, devices or {})
        accounts = MemoryAccounts(budgets, lambda: self.instances, self.meter, find_device, self, lambda: self.shared)
        self.admission = MemoryAdmission(accounts)

    def is_evictable(self, instance: Any) -> bool:
        return bool(instance.revision.spec.load == DEMAND)

    def evictable_bytes(self, request: RoomRequest) -> int:
        return sum(_held_bytes(each, request) for each in self._evictable(request))

    def make_room(self, request: RoomRequest, missing_bytes: int) -> int:
        """Those that were loaded first go first."""
        made = 0
        for each in self._evictable(request):
            if made < missing_bytes and each.state is State.READY and each.may_go:
                made += _held_bytes(each, request)
                each.state = State.DRAINING
                self.evicted.append((each.revision.spec.name, request.model))
        return made

    def keep_reserve(self, request: RoomRequest, pool: Pool, left_bytes: int) -> int:
        missing_bytes = self.reserve * MIB - left_bytes
        return self.make_room(request, missing_bytes) if pool.is_configured and missing_bytes > 0 else 0

    def _evictable(self, request: RoomRequest) -> list[Any]:
        states = (State.READY, State.LOADING)
        found = [each for each in self.instances if each.state in states and self.is_evictable(each)]
        return [each for each in found if each.revision.spec.name != request.model]

    def add(
        self, name: str, state: State = State.ABSENT, held: int = 0, known: int = 0, load: str = "", **gpu: int
    ) -> Any:
        """An instance whose worker holds so many MiB; `known`: what its version was measured to need."""
        spec = ModelSpec(name, "1", "/nowhere", "f", "custom", "p", device="cuda" if gpu else "cpu", load=load)
        group = Cgroup([Path("/nowhere")], "", lambda _: CgroupUsage(each.held * MIB, 0, 0, 0))
        worker = SimpleNamespace(
            group=group,
            gpu=GpuAssignment(GPU if gpu else "", GpuUsage(gpu.get("on_gpu", 0) * MIB)),
            ready_s=1.0,
            load_s=2.5,
            recycling=RecycleState(),
            sharers=1,
        )
        progress = SimpleNamespace(requests=1)
        process = SimpleNamespace(pid=os.getpid(), is_dead=False, progress=lambda: progress)
        each: Any = SimpleNamespace(
            id=len(self.instances), state=state, held=held, generation=1, digest="d", progress=list[str](),
            worker=worker if state is not State.ABSENT or gpu else None, revision=SimpleNamespace(spec=spec),
            process=process if state is not State.ABSENT else None, load_failure=None,
            may_go=True,
        )  # fmt: skip
        each.require_worker, each.is_forked, each.expects_fork = lambda: worker, False, lambda: False
        each.report_progress = each.progress.append
        each.record = lambda event, _text, **fields: self.events.append((event, fields))
        if known or gpu.get("knows_gpu"):
            measured = Footprint(known * MIB, known * MIB, gpu_settled_bytes=gpu.get("knows_gpu", 0) * MIB)
            self.store.put(footprint_key(spec), "d", measured)
        self.instances.append(each)
        self.meter.observe(each)
        return each

    def row(self, number: int = 0) -> dict[str, Any]:
        found = self.admission.status()["pools"][number]
        return {name: value // MIB if name.endswith("bytes") else value for name, value in found.items()}


def _held_bytes(instance: Any, request: RoomRequest) -> int:
    return int(instance.worker.gpu.usage.held_bytes if request.device else instance.held * MIB)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_workers_count_with_what_they_hold_and_loads_with_what_they_are_known_to_need(machine: Machine) -> None:
    machine.add("serves", State.READY, held=300)
    machine.add("loads", State.LOADING, held=10, known=400)
    machine.add("leaves", State.DRAINING, held=50)
    machine.shared.append(Claim("a zygote", 20 * MIB))
    row = machine.row()
    assert (row["in_use_bytes"], row["loading_bytes"], row["leaving_bytes"]) == (770, 400, 50)
    assert isinstance(machine.admission.decide(machine.add("small", known=230)), Admit)
    assert isinstance(machine.admission.decide(machine.add("large", known=281)), Refuse)


def test_what_one_waits_for_is_not_given_to_those_behind_it(machine: Machine) -> None:
    machine.add("serves", State.READY, held=500)
    machine.add("leaves", State.DRAINING, held=400)
    first, second = machine.add("first", known=450), machine.add("second", known=90)
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in (first, second)] == [False, False]
    text = "it needs 450MiB of host memory, and 900MiB of the budget of 1000MiB are in use"
    assert first.progress == [f"waiting for memory: {text}"]
    machine.admission.begin_pass(2).need_not_wait(first)
    assert len(first.progress) == 1
    machine.instances[1].state = State.STOPPED
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in (first, second)] == [True, True]
    assert machine.admission.begin_pass(2).need_not_wait(second)  # alone


def test_what_a_pass_admits_is_booked_for_those_behind_it(machine: Machine) -> None:
    machine.add("leaves", State.DRAINING, held=500)
    first, second = machine.add("first", known=400), machine.add("second", known=400)
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in (first, second)] == [True, False]


def test_a_refusal_is_an_event_and_is_tried_again_when_it_fits(machine: Machine) -> None:
    machine.add("serves", State.READY, held=900)
    refused = machine.add("refused", State.STARTING, known=200)
    with pytest.raises(MemoryRefused, match="200MiB of host memory") as error:
        machine.admission.require(refused)
    assert "--memory-budget" in error.value.advice
    ((event, fields),) = machine.events
    assert (event, fields["missing_bytes"], fields["held_by"]) == ("load_refused", 100 * MIB, {"serves/1": 900 * MIB})
    asked: list[bool] = []

    def retry(code: str, may: Callable[[Any], bool]) -> None:
        assert code == "insufficient_memory"
        asked.append(may(refused))

    machine.admission.retry_refused(retry)  # the failure is about to be reported
    refused.state = State.BACKOFF
    machine.admission.retry_refused(retry)
    machine.instances[0].state = State.STOPPED
    machine.admission.retry_refused(retry)
    assert asked == [False, False, True]
    refused.state = State.STOPPED
    machine.admission.retry_refused(retry)
    assert len(asked) == 3


def test_what_never_fits_is_refused_for_ever_but_for_one_of_several_gpus(machine: Machine) -> None:
    def code(name: str, device: str, **gpu: int) -> str:
        load = machine.add(name, State.STARTING, **gpu)  # type: ignore[arg-type] # by name
        load.revision.spec = replace(load.revision.spec, device=device)
        known = Footprint(gpu["known"] * MIB, gpu["known"] * MIB, gpu_settled_bytes=gpu.get("knows_gpu", 0) * MIB)
        machine.store.put(footprint_key(load.revision.spec), "d", known)
        with pytest.raises(MemoryRefused) as error:
            machine.admission.require(load)
        return error.value.code

    assert code("host", "cpu", known=1001) == "does_not_fit"
    machine = Machine(machine.home, devices={"cuda:0": 300 * MIB})
    assert code("gpu", "cuda", known=1, on_gpu=0, knows_gpu=301) == "insufficient_memory"
    assert code("one", "cuda:0", known=1, on_gpu=0, knows_gpu=301) == "does_not_fit"


def test_a_guess_that_does_not_fit_is_said_once_and_admitted(machine: Machine) -> None:
    machine.add("serves", State.READY, held=990)
    unknown = machine.add("unknown", State.STARTING)
    machine.admission.require(unknown)
    machine.admission.require(unknown)
    assert [event for event, _ in machine.events] == ["memory_overbooked"]
    assert machine.events[0][1]["guessed"] is True


def test_a_device_has_a_budget_of_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path, devices={"cuda:0": 300 * MIB})
    machine.add("serves", State.READY, held=10, on_gpu=200)
    load = machine.add("load", State.STARTING, known=10, on_gpu=0, knows_gpu=101)
    with pytest.raises(MemoryRefused, match=r"101MiB of cuda:0 \(card\), and 200MiB of the budget of 300MiB") as error:
        machine.admission.require(load)
    assert "--gpu-memory-budget" in error.value.advice
    assert machine.row(1) == {
        "memory": "cuda:0 (card)", "budget_bytes": 300, "configured": True, "in_use_bytes": 301, "loading_bytes": 101,
        "leaving_bytes": 0,
    }  # fmt: skip
    load.state, asked = State.BACKOFF, list[bool]()
    machine.admission.retry_refused(lambda _, may: asked.append(may(load)))
    machine.instances[0].worker = None
    machine.admission.retry_refused(lambda _, may: asked.append(may(load)))
    assert asked == [False, True]
    machine.add("not seen yet", State.READY, on_gpu=0, knows_gpu=250)
    machine.admission.retry_refused(lambda _, may: asked.append(may(load)))
    assert asked[-1] is False


def test_another_worker_like_this_one_fits_beside_it_or_not(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    old = machine.add("old", State.READY, held=400)
    old.worker.recycling.initial_bytes = 300 * MIB  # it has grown since
    assert machine.admission.required_bytes(old) == 300 * MIB
    assert machine.admission.has_room_for(old, 300 * MIB)
    assert not machine.admission.has_room_for(old, 301 * MIB)
    monkeypatch.setattr(machine.admission, "available_bytes", lambda: 300 * MIB + RESERVED_BYTES)
    assert machine.admission.has_room_for(old)
    assert not machine.admission.has_room_for(old, 1)
    assert machine.admission.has_room_for(machine.add("not started"), 1 << 50)


def test_a_worker_is_measured_while_it_loads_when_it_is_ready_and_while_it_serves(machine: Machine) -> None:
    one = machine.add("m", State.LOADING, held=500)
    one.held, one.state, one.worker.ready_s = 200, State.READY, 1e12  # just now: it is measured again at once
    machine.meter.observe(one)
    (first,) = machine.admission.footprints("m")
    assert (first["load_peak_bytes"] // MIB >= 500, first["settled_bytes"], first["load_s"]) == (True, 200 * MIB, 2.5)
    one.held = 350
    machine.meter.observe(one)
    assert machine.admission.footprints("m")[0]["serving_peak_bytes"] == 350 * MIB
    assert machine.admission.footprints("m")[0]["settled_bytes"] == 200 * MIB
    assert machine.written
    again = machine.add("m", State.READY, held=900)  # of a controller before: what it held at first is unknown
    assert machine.admission.footprints("m")[0]["settled_bytes"] == 200 * MIB
    assert machine.meter.held_bytes(again) == 900 * MIB
    again.digest = "other files"
    assert machine.meter.find(again) is None
    again.process = None
    machine.meter.observe(again)
    assert machine.meter.held_bytes(again) == 0


def test_the_default_budget_refuses_nothing_that_the_machine_holds(machine: Machine, tmp_path: Path) -> None:
    machine.add("serves", State.READY, held=5000)
    assert isinstance(machine.admission.decide(machine.add("m", known=400)), Refuse)
    default = Machine(tmp_path, is_configured=False)
    default.add("serves", State.READY, held=5000)
    assert isinstance(default.admission.decide(default.add("m", known=1)), Admit)


def test_room_is_made_for_a_load_which_waits_until_it_is_there(machine: Machine) -> None:
    machine.add("kept", State.READY, held=300)
    old, older = (machine.add(name, State.READY, held=300, load=DEMAND) for name in ("old", "older"))
    load = machine.add("load", known=350, load=DEMAND)
    assert not machine.admission.begin_pass(2).need_not_wait(load)
    assert machine.evicted == [("old", "load")]
    assert not machine.admission.begin_pass(2).need_not_wait(load), "its memory is not back yet"
    assert machine.evicted == [("old", "load")], "and nobody else goes meanwhile"
    old.state = State.STOPPED
    assert machine.admission.begin_pass(2).need_not_wait(load)
    assert older.state is State.READY


def test_room_is_made_for_as_many_loads_as_may_be_under_way(machine: Machine) -> None:
    for number in range(10):
        machine.add(f"m{number}", State.READY, held=100, load=DEMAND)
    loads = [machine.add(f"load{number}", known=100, load=DEMAND) for number in range(5)]
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in loads] == [False] * 5
    assert machine.evicted == [("m0", "load0"), ("m1", "load1")]
    machine.instances[0].state = machine.instances[1].state = State.STOPPED
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in loads] == [True, True, False, False, False]
    assert [name for _, name in machine.evicted[2:]] == ["load2", "load3"]


def test_a_load_waits_for_models_that_may_not_go_yet_and_is_refused_where_none_ever_may(machine: Machine) -> None:
    machine.add("kept", State.READY, held=500)
    young = machine.add("young", State.LOADING, held=400, load=DEMAND)
    load = machine.add("load", known=450, load=DEMAND)
    assert not machine.admission.begin_pass(2).need_not_wait(load)
    young.state, young.may_go = State.READY, False
    assert not machine.admission.begin_pass(2).need_not_wait(load)
    assert machine.evicted == []
    young.may_go = True
    assert not machine.admission.begin_pass(2).need_not_wait(load)
    assert machine.evicted == [("young", "load")]
    assert machine.admission.begin_pass(2).need_not_wait(machine.add("large", known=501)), "it is refused at its start"
    with pytest.raises(MemoryRefused):
        machine.admission.require(machine.add("large", State.STARTING, known=501))


def test_a_guess_makes_what_room_there_is_and_begins_then(machine: Machine) -> None:
    machine.add("kept", State.READY, held=985)
    old = machine.add("old", State.READY, held=10, load=DEMAND)
    load = machine.add("load", load=DEMAND)
    assert not machine.admission.begin_pass(2).need_not_wait(load)
    old.state = State.STOPPED
    assert machine.admission.begin_pass(2).need_not_wait(load)


def test_two_loads_that_begin_in_one_pass_may_make_room_for_others_later(machine: Machine) -> None:
    machine.add("kept", State.READY, held=600)
    first, second = (machine.add(name, known=300, load=DEMAND) for name in ("first", "second"))
    need_not_wait = machine.admission.begin_pass(2).need_not_wait
    assert [need_not_wait(each) for each in (first, second)] == [True, False], "the second is not refused"


def test_room_on_a_gpu_is_made_as_on_the_host(tmp_path: Path) -> None:
    machine = Machine(tmp_path, devices={"cuda:0": 300 * MIB})
    machine.add("old", State.READY, held=10, load=DEMAND, on_gpu=250)
    load = machine.add("load", known=10, load=DEMAND, knows_gpu=100)
    assert not machine.admission.begin_pass(2).need_not_wait(load, GPU)
    assert machine.evicted == [("old", "load")]


def test_what_a_load_takes_of_the_reserve_is_made_again_and_what_leaves_already_counts(machine: Machine) -> None:
    machine.reserve = 200
    for name in ("old", "young"):
        machine.add(name, State.READY, held=350, load=DEMAND)
    assert machine.admission.begin_pass(2).need_not_wait(machine.add("first", known=50, load=DEMAND))
    assert machine.evicted == [], "250 MiB are left"
    machine.instances.pop()
    assert machine.admission.begin_pass(2).need_not_wait(machine.add("second", known=150, load=DEMAND))
    assert machine.evicted == [("old", "second")]
    machine.instances.pop()
    assert machine.admission.begin_pass(2).need_not_wait(machine.add("third", known=250, load=DEMAND))
    assert machine.evicted == [("old", "second")], "the one that leaves gives 350 MiB"
