"""Who holds how much memory, of the host and of each GPU, and what one more worker needs: the facts for `admission`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.capacity import footprint, moves
from mmsup.supervisor.capacity.admission import Claim, ClaimState, DeviceMemory, Evictor, Pool, RoomRequest
from mmsup.supervisor.capacity.budget import MemoryBudgets
from mmsup.supervisor.capacity.footprint import Need
from mmsup.supervisor.capacity.footprint_meter import FootprintMeter
from mmsup.supervisor.capacity.moves import MoveEstimate
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ALIVE, LOADING, OFFLOADABLE, InstanceState
from mmsup.supervisor.processes import usage

HOST: Final = "host memory"
HOST_OPTION: Final = "--memory-budget"
GPU_OPTION: Final = "--gpu-memory-budget"
_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})


class MemoryAccounts:
    def __init__(
        self,
        budgets: MemoryBudgets,
        instances: Callable[[], Iterable[Instance]],
        meter: FootprintMeter,
        find_device: Callable[[str], DeviceMemory | None],
        evictor: Evictor,
        shared_claims: Callable[[], Iterable[Claim]],
    ) -> None:
        """`find_device`: a GPU by what CUDA_VISIBLE_DEVICES of a worker holds; None if it is not known now.
        `shared_claims`: what is held of the host for many workers together, each once."""
        self.meter = meter
        self.evictor = evictor
        self._budgets = budgets
        self._instances = instances
        self._find_device = find_device
        self._shared_claims = shared_claims

    def pools(self) -> list[Pool]:
        """The host's and those of all GPUs on which a worker is."""
        devices = dict.fromkeys(each.worker.gpu.device for each in self._instances() if each.worker is not None)
        pools = [self.host_pool(), *(self.device_pool(None, each) for each in devices if each)]
        return [each for each in pools if each is not None]

    def host_need(self, instance: Instance) -> Need:
        measured, is_forked = self.meter.find(instance), instance.expects_fork()
        is_known = measured is not None and measured.is_forked is is_forked
        artifact = 0 if is_known else self.meter.artifact_bytes(instance)
        return footprint.host_need(instance.revision.spec, measured, artifact, is_forked=is_forked)

    def gpu_need(self, instance: Instance, device: str = "") -> Need:
        """`device`: where it is, or is to be; empty: not known yet."""
        spec, measured = instance.revision.spec, self.meter.find(instance)
        context_bytes = self.meter.contexts.of(device)
        return footprint.gpu_need(spec, measured, self.meter.artifact_bytes(instance), context_bytes)

    def missing_bytes(self, spec: ModelSpec, device: str) -> int:
        """What the budget of a GPU lacks for one more worker of a version that is to be loaded; 0 where either is not
        known."""
        instance = next((each for each in self._instances() if each.revision.spec == spec), None)
        pool = self.device_pool(None, device) if instance is not None else None
        return pool.missing_bytes(self.gpu_need(instance, device)) if pool is not None and instance is not None else 0

    def note_context(self, instance: Instance) -> None:
        """Learn what a context takes of a GPU: what NVML says of a worker without what its engine has allocated."""
        worker, process = instance.worker, instance.process
        found = self._find_device(worker.gpu.device) if worker is not None and worker.gpu.device else None
        if worker is None or process is None or found is None or instance.state is not InstanceState.READY:
            return
        if worker.gpu.usage.source == "nvml" and worker.sharers == 1:
            self.meter.note_context(found.names, worker.gpu.usage.held_bytes, process.progress().device_bytes)

    def needs(self, instance: Instance, device: str) -> dict[str, Need]:
        """What its load takes, by GPU; that of the host by the empty name."""
        needs = {"": self.host_need(instance)}
        if device and self._find_device(device) is not None:
            needs[device] = self.gpu_need(instance, device)
        if instance.state is InstanceState.OFFLOADED:  # it holds some of that
            needs = {name: need.beside(self.claimed_bytes(instance, name)) for name, need in needs.items()}
        return needs

    def move_estimate(self, instance: Instance) -> MoveEstimate:
        """What a move of its model to host memory is likely to give and to take."""
        worker, process = instance.require_worker(), instance.process
        is_on_device = process is not None and bool(worker.gpu.device)
        allocated_bytes = process.progress().device_bytes if process is not None and is_on_device else 0
        held_bytes = max(worker.gpu.usage.held_bytes, allocated_bytes) if is_on_device else 0
        host_bytes, cap_bytes = self.meter.held_bytes(instance), instance.revision.spec.memory_bytes
        return moves.estimate(self.meter.find(instance), host_bytes, held_bytes, allocated_bytes, cap_bytes)

    def claimed_bytes(self, instance: Instance, device: str = "") -> int:
        """What its worker holds of a GPU, or of the host if none is named, or is expected to while it loads."""
        worker = instance.worker
        if worker is None or (device and worker.gpu.device != device):
            return 0
        held_bytes = worker.gpu.usage.held_bytes if device else self.meter.held_bytes(instance)
        if instance.state is InstanceState.OFFLOADING and not device:
            return held_bytes + max(self.move_estimate(instance).host_growth_bytes, 0)
        if instance.state in OFFLOADABLE or (held_bytes and instance.state not in LOADING):
            return held_bytes
        need = self.gpu_need(instance, device) if device else self.host_need(instance)
        return max(held_bytes, need.needed_bytes)  # what serves is measured a moment later, on a GPU by NVML

    def room_request(self, load: Instance, device: str, memory: str) -> RoomRequest:
        spec = load.revision.spec
        return RoomRequest(spec.name, spec.effective_priority(0), device, memory)

    def pool(self, device: str) -> Pool:
        """That of a GPU which is known, or of the host if none is named."""
        found = self.device_pool(None, device) if device else self.host_pool()
        assert found is not None, f"{device} was there a moment ago"
        return found

    def host_pool(self, load: Instance | None = None, reserved: Sequence[Claim] = ()) -> Pool:
        claims = (*self._host_claims(load), *self._shared_claims(), *reserved)
        booked = sum(each.claimed_bytes for each in claims if each.state is ClaimState.BOOKED)
        growth = booked - sum(
            self.meter.held_bytes(each) for each in self._instances() if each is not load and each.state in LOADING
        )
        free_bytes = usage.free_bytes() - max(growth, 0)
        return Pool(
            HOST,
            HOST_OPTION,
            self._budgets.host_bytes,
            self._budgets.is_configured,
            claims,
            free_bytes,
        )

    def device_pool(self, load: Instance | None, device: str) -> Pool | None:
        found = self._find_device(device)
        if found is None:
            return None
        budget = self._budgets.of_device(*found.names)
        claims = tuple(self._device_claims(load, device))
        return Pool(
            found.label,
            GPU_OPTION,
            found.total_bytes if budget is None else budget,
            budget is not None,
            claims,
            device=device,
        )

    def _host_claims(self, load: Instance | None) -> Iterator[Claim]:
        for each in self._instances():
            if each is not load and each.state in ALIVE:
                yield Claim(holder(each), self.claimed_bytes(each), _claim_state(each))

    def _device_claims(self, load: Instance | None, device: str) -> Iterator[Claim]:
        for each in self._instances():
            if each is not load and each.worker is not None and each.worker.gpu.device == device:
                claimed_bytes, returning_bytes = self.claimed_bytes(each, device), 0
                if each.state is InstanceState.OFFLOADING:
                    returning_bytes = min(self.move_estimate(each).device_gain_bytes, claimed_bytes)
                    yield Claim(holder(each), returning_bytes, ClaimState.RETURNING)
                yield Claim(holder(each), claimed_bytes - returning_bytes, _claim_state(each))


def _claim_state(instance: Instance) -> ClaimState:
    if instance.state in LOADING:
        return ClaimState.BOOKED
    return ClaimState.RETURNING if instance.state in _LEAVING else ClaimState.USED


def holder(instance: Instance) -> str:
    """The name of a worker in claims."""
    return f"{instance.revision.spec.name}/{instance.revision.spec.version}"
