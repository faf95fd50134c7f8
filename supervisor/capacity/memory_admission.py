"""Whether memory holds one more worker: the shell of capacity/admission.py, with the workers that there are.

Every load passes it twice: `begin_pass` keeps back those that wait for memory that is being given back, and `require`
has the last word when the device of the worker is known. Nothing else needs to be called to load a model by need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from mmsup.supervisor.capacity import admission
from mmsup.supervisor.capacity.admission import (
    Admit,
    Claim,
    ClaimState,
    Decision,
    MakeRoom,
    Pool,
    WaitForMemory,
)
from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.capacity.memory_accounts import HOST, MemoryAccounts, holder
from mmsup.supervisor.instances.context import MemoryRefused
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.processes import usage

Json = dict[str, Any]  # one JSON object

RESERVED_BYTES: Final = 64 << 20
"""Left to the rest of the machine beside a replacement and the worker that it replaces."""

_MAY_BE_REFUSED: Final = STARTING_UP | {InstanceState.BACKOFF}


class MemoryAdmission:
    """`decide` for an instance of a model set; what it refused is tried again by `retry_refused`."""

    def __init__(self, accounts: MemoryAccounts) -> None:
        self._accounts = accounts
        self._warned: set[tuple[str, str]] = set()
        """Model versions of which it was said that they may not fit."""
        self._waiting: dict[int, Instance] = {}
        """Instances whose wait has been reported."""
        self._refused: dict[int, tuple[Instance, str]] = {}
        """With the device that they were to start on."""

    def decide(self, instance: Instance, device: str = "") -> Decision:
        """Whether the worker of this instance may start now beside all others. `device`: the GPU that is assigned to
        it; empty: the CPU, or not known yet.

        The one entry for every load, also for one by need: an instance that is wanted passes through it by itself.
        """
        demands = [(self._accounts.host_pool(instance), self._accounts.host_need(instance))]
        if device and (pool := self._accounts.device_pool(instance, device)) is not None:
            demands.append((pool, self._accounts.gpu_need(instance)))
        return admission.decide(demands)

    def begin_pass(self) -> Callable[[Instance], bool]:
        """For one pass over queued instances, asked of the most urgent first: whether one need not wait for memory that
        is being given back. What one takes or waits for is not given to those behind it."""
        self._waiting = {number: each for number, each in self._waiting.items() if each.state is InstanceState.ABSENT}
        pool = self._accounts.host_pool()
        taken, awaited = list[Claim](), list[Claim]()

        def need_not_wait(instance: Instance) -> bool:
            need, evictable = self._accounts.host_need(instance), self._accounts.evictable_bytes(HOST, instance)
            now = replace(pool, evictable_bytes=evictable)
            decision = admission.decide([(_beside(now, [*taken, *awaited]), need)])
            must_wait = isinstance(decision, WaitForMemory) or (
                isinstance(decision, MakeRoom) and self._make_room(instance, decision)
            )
            if awaited and not must_wait and not isinstance(decision, Admit):
                alone = admission.decide([(_beside(now, taken), need)])
                must_wait = isinstance(alone, Admit | WaitForMemory)
            if must_wait:
                self._report_wait(instance, decision)
            claim = Claim(holder(instance), need.needed_bytes, ClaimState.BOOKED)
            if must_wait or isinstance(decision, Admit):
                (awaited if must_wait else taken).append(claim)
            return not must_wait

        return need_not_wait

    def _report_wait(self, instance: Instance, decision: Decision) -> None:
        if instance.id not in self._waiting and not isinstance(decision, Admit):
            self._waiting[instance.id] = instance
            instance.report_progress(f"waiting for memory: {decision.shortage.text}")

    def require(self, instance: Instance) -> None:
        """MemoryRefused if the worker that is about to start has no room. Records that, and once for each version that
        it may not fit."""
        device = instance.require_worker().gpu.device
        decision = self.decide(instance, device)
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
        self._refused[instance.id] = instance, device
        shortage = decision.shortage
        instance.record("load_refused", f"{shortage.text}; {shortage.advice}", **shortage.fields())
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

    def available_bytes(self) -> int:
        return usage.machine_memory().available_bytes

    def status(self) -> Json:
        """Budgets and what is held of them, as JSON for people."""
        return {"pools": [_pool_row(each) for each in self._accounts.pools()]}

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

    def _make_room(self, instance: Instance, decision: MakeRoom) -> bool:
        """Whether enough is on its way out now."""
        spec, shortage = instance.revision.spec, decision.shortage
        made = self._accounts.evictor.make_room(
            shortage.pool, holder(instance), spec.effective_priority(0), shortage.missing_bytes
        )
        return made >= shortage.missing_bytes


def _beside(pool: Pool, booked: Sequence[Claim]) -> Pool:
    """The pool after these loads."""
    if pool.free_bytes is None or not booked:
        return replace(pool, claims=(*pool.claims, *booked))
    free_bytes = pool.free_bytes - sum(each.claimed_bytes for each in booked)
    return replace(pool, claims=(*pool.claims, *booked), free_bytes=free_bytes)


def _pool_row(pool: Pool) -> Json:
    return {
        "memory": pool.name,
        "budget_bytes": pool.budget_bytes,
        "configured": pool.is_configured,
        "in_use_bytes": pool.claimed(),
        "loading_bytes": pool.claimed(ClaimState.BOOKED),
        "leaving_bytes": pool.returning_bytes,
    }
