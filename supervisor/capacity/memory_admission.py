"""Whether memory holds one more worker: the shell of capacity/admission.py, with the workers that there are.

Every load passes it twice: `begin_pass` keeps back those that wait for memory that is being given back, and has room
made for them (load_pass.py); `require` has the last word when the worker is about to start. Nothing else needs to be
called to load a model by need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mmsup.supervisor.capacity import admission
from mmsup.supervisor.capacity.admission import Admit, Claim, ClaimState, Decision, Pool, Shortage
from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.capacity.load_pass import LoadPass
from mmsup.supervisor.capacity.memory_accounts import MemoryAccounts
from mmsup.supervisor.capacity.moves import MoveEstimate
from mmsup.supervisor.instances.context import MemoryRefused
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.processes import usage

Json = dict[str, Any]  # one JSON object

RESERVED_BYTES: Final = 64 << 20
"""Left to the rest of the machine beside a replacement and the worker that it replaces."""

_QUEUED: Final = frozenset({InstanceState.ABSENT, InstanceState.OFFLOADED})
_MAY_BE_REFUSED: Final = STARTING_UP | {InstanceState.BACKOFF}


class MemoryAdmission:
    """`decide` for an instance of a model set; what it refused is tried again by `retry_refused`."""

    def __init__(self, accounts: MemoryAccounts) -> None:
        self._accounts = accounts
        self._warned: set[tuple[str, str]] = set()
        """Model versions of which it was said that they may not fit."""
        self._waiting: dict[int, Instance] = {}
        """Instances whose wait has been reported."""
        self._granted: dict[int, tuple[str, Admit]] = {}
        """By instance: what the last pass has admitted, for which GPU. It is not weighed anew: memory that is counted a
        moment later may differ by some pages, and room was made to the byte."""
        self._refused: dict[int, tuple[Instance, str]] = {}
        """With the device that they were to start on."""

    def decide(self, instance: Instance, device: str = "") -> Decision:
        """Whether the worker of this instance may start now beside all others, without any that leave. `device`: the
        GPU that is assigned to it; empty: the CPU, or not known yet."""
        demands = [(self._accounts.host_pool(instance), self._accounts.host_need(instance))]
        if device and (pool := self._accounts.device_pool(instance, device)) is not None:
            demands.append((pool, self._accounts.gpu_need(instance, device)))
        return admission.decide(demands)

    def begin_pass(self, most_waiting: int) -> LoadPass:
        """For one pass over queued instances. `most_waiting`: for how many at a time room may be made."""
        self._waiting = {number: each for number, each in self._waiting.items() if each.state in _QUEUED}
        self._granted = {}
        return LoadPass(self._accounts, most_waiting, self._report_wait, self._grant)

    def _grant(self, instance: Instance, device: str, decision: Admit) -> None:
        self._granted[instance.id] = device, decision

    def _report_wait(self, instance: Instance, shortage: Shortage) -> None:
        if instance.id not in self._waiting:
            self._waiting[instance.id] = instance
            instance.report_progress(f"waiting for memory: {shortage.text}")

    def require(self, instance: Instance) -> None:
        """MemoryRefused if the worker that is about to start has no room. Records that, and once for each version that
        it may not fit."""
        device = instance.require_worker().gpu.device
        expected, granted = self._granted.pop(instance.id, (device, None))
        decision = granted if granted is not None and expected == device else self.decide(instance, device)
        version = instance.revision.spec.name, instance.revision.spec.version
        if isinstance(decision, Admit):
            self._refused.pop(instance.id, None)
            if decision.warning is None:
                self._warned.discard(version)
            elif version not in self._warned:
                self._warned.add(version)
                text = f"it may not fit: {decision.warning.text}; {decision.warning.advice}"
                instance.record("memory_overbooked", text, **decision.warning.fields())
            return
        shortage = decision.shortage
        instance.record("load_refused", f"{shortage.text}; {shortage.advice}", **shortage.fields())
        # Of several GPUs another one may have more.
        if shortage.is_beyond_budget and (not shortage.device or ":" in instance.revision.spec.device):
            raise MemoryRefused(shortage.text, shortage.advice, MemoryRefused.for_ever)
        self._refused[instance.id] = instance, device
        raise MemoryRefused(shortage.text, shortage.advice)

    def retry_refused(self, retry: Callable[[str, Callable[[Instance], bool]], None]) -> None:
        """Start those again that were refused and fit now. `retry`: as ModelSet has it."""
        self._refused = {
            number: refused for number, refused in self._refused.items() if refused[0].state in _MAY_BE_REFUSED
        }
        if self._refused:
            retry(MemoryRefused.code, self._fits)

    def has_room_for(self, old: Instance, reserved_bytes: int = 0) -> bool:
        """Whether another worker like this one fits beside it and what is reserved; true if its size is unknown."""
        needed = self.required_bytes(old)
        if needed is None:
            return True
        if needed + reserved_bytes + RESERVED_BYTES > self.available_bytes():
            return False
        reserved = (Claim("replacements", reserved_bytes, ClaimState.BOOKED),)
        return isinstance(admission.decide([(self._accounts.host_pool(None, reserved), Need(needed, needed))]), Admit)

    def required_bytes(self, instance: Instance) -> int | None:
        """What another worker like this one takes when it has become ready; growth (a leak) is not counted. None if
        that is unknown."""
        worker, process = instance.worker, instance.process
        if worker is None or process is None:
            return None
        return worker.recycling.initial_bytes or usage.footprint_bytes(worker.group, process.pid)

    def host_room_bytes(self) -> int:
        """What models that go to sleep may take of the host."""
        pool = self._accounts.host_pool()
        left_bytes = pool.budget_bytes - pool.claimed()
        return left_bytes if pool.free_bytes is None else min(left_bytes, pool.free_bytes - RESERVED_BYTES)

    def move_estimate(self, instance: Instance) -> MoveEstimate:
        """What a move of its model to host memory is likely to give and to take."""
        return self._accounts.move_estimate(instance)

    def available_bytes(self) -> int:
        return usage.machine_memory().available_bytes

    def status(self) -> Json:
        """Budgets and what is held of them, as JSON for people."""
        pools = [_pool_row(each) for each in self._accounts.pools()]
        return {"pools": pools, "evictions": dict(self._accounts.evictor.counts)}

    def footprints(self, name: str) -> list[Json]:
        """What the versions of a model were measured to need, as JSON."""
        found = self._accounts.meter.of_model(name)
        return [
            {"version": key.version, "engine": key.engine, "device": key.device}
            | {field: getattr(each, field) for field in each.__slots__}
            for key, each in sorted(found.items())
        ]

    def _fits(self, instance: Instance) -> bool:
        _, device = self._refused.get(instance.id, (instance, ""))
        return isinstance(self.decide(instance, device), Admit)


def _pool_row(pool: Pool) -> Json:
    return {
        "memory": pool.name,
        "budget_bytes": pool.budget_bytes,
        "configured": pool.is_configured,
        "in_use_bytes": pool.claimed(),
        "loading_bytes": pool.claimed(ClaimState.BOOKED),
        "leaving_bytes": pool.returning_bytes,
    }
