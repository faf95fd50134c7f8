"""One pass over the loads that are queued, the most urgent one first: which need not wait for memory, and for which
room is made.

What one load takes or waits for is not given to those behind it. Room is made for so many loads at a time as may be
under way: what is evicted for more of them would lie idle. Memory of the host and of each GPU is weighed alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from mmsup.supervisor.capacity import admission
from mmsup.supervisor.capacity.admission import (
    Admit,
    Claim,
    ClaimState,
    Decision,
    MakeRoom,
    Pool,
    Refuse,
    Shortage,
    WaitForMemory,
)
from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.capacity.memory_accounts import MemoryAccounts, holder
from mmsup.supervisor.instances.instance import Instance

Needs = Mapping[str, Need]
"""Of one load, by GPU; that of the host by the empty name."""


class LoadPass:
    def __init__(
        self,
        accounts: MemoryAccounts,
        most_waiting: int,
        report_wait: Callable[[Instance, Shortage], None],
        grant: Callable[[Instance, str, Admit], None],
    ) -> None:
        """`grant` gets each load that may begin now, with the GPU that it was weighed for."""
        self._accounts = accounts
        self._most_waiting = most_waiting
        self._report_wait = report_wait
        self._grant = grant
        self._pools: dict[str, Pool] = {}
        self._taken = defaultdict[str, list[Claim]](list)
        """By GPU, for loads that begin in this pass."""
        self._awaited = defaultdict[str, list[Claim]](list)
        self._evictable_later = defaultdict[str, int](int)
        """What of both may be evicted again once it is there."""
        self._waiting = 0

    def need_not_wait(self, instance: Instance, device: str = "") -> bool:
        """`device`: the GPU that it is about to be assigned to; empty: none."""
        needs = self._accounts.needs(instance, device)
        decision = self._decide(instance, needs, with_eviction=False)
        if not isinstance(decision, Admit) or decision.warning is not None:
            if self._waiting < self._most_waiting:
                decision = self._decide(instance, needs)
            if self._must_wait(instance, needs, decision):
                self._waiting += 1
                self._book(instance, needs, self._awaited)
                return False
        if isinstance(decision, Admit):
            self._book(instance, needs, self._taken)
            self._grant(instance, device, decision)
            self._keep_reserve(instance)
        return True

    def _keep_reserve(self, instance: Instance) -> None:
        evictor, pool = self._accounts.evictor, self._pool("")
        if not pool.is_configured or not evictor.is_evictable(instance):
            return
        booked = sum(each.claimed_bytes for each in (*self._taken[""], *self._awaited[""]))
        left_bytes = pool.budget_bytes - pool.claimed() + pool.returning_bytes - booked
        if evictor.keep_reserve(self._accounts.room_request(instance, "", pool.name), pool, left_bytes):
            self._pools.clear()

    def _must_wait(self, instance: Instance, needs: Needs, decision: Decision) -> bool:
        if isinstance(decision, Admit):
            return False
        is_behind = self._waiting >= self._most_waiting
        if isinstance(decision, MakeRoom):
            self._make_room(instance, decision.shortage)
        elif isinstance(decision, Refuse):
            is_behind = is_behind or not isinstance(self._decide(instance, needs, beside_awaited=False), Refuse)
        must_wait = is_behind or isinstance(decision, MakeRoom | WaitForMemory)
        if must_wait:
            self._report_wait(instance, decision.shortage)
        return must_wait

    def _make_room(self, instance: Instance, shortage: Shortage) -> None:
        coming_bytes = self._pool(shortage.device).returning_bytes
        request = self._accounts.room_request(instance, shortage.device, shortage.pool)
        if self._accounts.evictor.make_room(request, shortage.missing_bytes - coming_bytes):
            self._pools.clear()

    def _decide(
        self, instance: Instance, needs: Needs, *, with_eviction: bool = True, beside_awaited: bool = True
    ) -> Decision:
        demands: list[tuple[Pool, Need]] = []
        for device, need in needs.items():
            pool = self._pool(device)
            claims = [*self._taken[device], *(self._awaited[device] if beside_awaited else ())]
            booked = sum(each.claimed_bytes for each in claims)
            free_bytes = pool.free_bytes - booked if pool.free_bytes is not None else None
            evictable = self._evictable(instance, device, pool.name) if with_eviction else 0
            pool = replace(pool, claims=(*pool.claims, *claims), free_bytes=free_bytes, evictable_bytes=evictable)
            demands.append((pool, need))
        return admission.decide(demands)

    def _evictable(self, instance: Instance, device: str, memory: str) -> int:
        request = self._accounts.room_request(instance, device, memory)
        return self._accounts.evictor.evictable_bytes(request) + self._evictable_later[device]

    def _pool(self, device: str) -> Pool:
        if device not in self._pools:
            self._pools[device] = self._accounts.pool(device)
        return self._pools[device]

    def _book(self, instance: Instance, needs: Needs, claims: Mapping[str, list[Claim]]) -> None:
        may_go_later = self._accounts.evictor.is_evictable(instance)
        for device, need in needs.items():
            claims[device].append(Claim(holder(instance), need.needed_bytes, ClaimState.BOOKED))
            self._evictable_later[device] += need.needed_bytes if may_go_later else 0
