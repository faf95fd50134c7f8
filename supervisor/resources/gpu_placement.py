"""Which GPU each worker sees, and whether it can be loaded there now.

While NVML has not answered yet a model's `device` is taken at its word; while it is silent nothing waits for it.
Decided elsewhere: which device (gpu.py), whether one is set aside (infirmary.py), whether memory is back (reclaim.py).
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu import inventory, memory_release
from mmsup.supervisor.gpu.health_infirmary import Infirmary
from mmsup.supervisor.gpu.monitor import Lookout
from mmsup.supervisor.instances.lifecycle_events import State
from mmsup.supervisor.models.model_set import Fleet

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

Json = dict[str, Any]  # one JSON object
DEBTS: Final = 64
"""Of one device; it may be long before NVML says that they are paid."""


class Devices:
    """What a load has to know of GPUs."""

    def __init__(self, fleet: Fleet, lookout: Lookout, infirmary: Infirmary) -> None:
        self._fleet = fleet
        self._lookout = lookout
        self._infirmary = infirmary
        self._debts: defaultdict[str, list[memory_release.Debt]] = defaultdict(list)
        """By UUID: what is to come back."""
        self._needs: dict[tuple[str, str], int] = {}
        """By model and version: what its last worker held of a GPU when it was first seen to serve."""
        self._waiting: set[str] = set()
        """Models with a load that waits for the next look."""
        self._told: set[int] = set()
        """Instances whose waiters know of it."""
        lookout.on_look = self._looked

    # What a load asks.

    def place(self, instance: Instance) -> str:
        """CUDA_VISIBLE_DEVICES for an instance that is about to be started; gpu.NoGpu if it cannot be had now."""
        word = self._chosen(instance)
        verdict = self._verdict(instance, word)
        self._told.discard(instance.id)
        if isinstance(verdict, memory_release.Short):
            free, need = size_text(verdict.free_bytes), size_text(verdict.need_bytes)
            text = f"{self._lookout.title(word)} has {free} of memory free, and {need} are needed"
            raise inventory.NoRoom(f"{text}: what a worker that ended held there is not back")
        return word

    def holds(self, instance: Instance) -> bool:
        """Whether its load has to wait for memory that is about to come back; asked again after each look."""
        try:
            word = self._chosen(instance)
        except inventory.NoGpu:
            return False  # whoever starts it is told
        if not isinstance(self._verdict(instance, word), memory_release.Wait):
            return False
        self._waiting.add(instance.release.spec.name)
        if instance.id not in self._told:
            self._told.add(instance.id)
            instance.site.progress(instance, f"waiting for memory of {self._lookout.title(word)}")
        return True

    def _chosen(self, instance: Instance) -> str:
        device, reasons = instance.release.spec.device, self._infirmary.reasons
        return inventory.visible_devices(device, self._lookout.gpus, reasons, lambda uuid: self._burden(instance, uuid))

    def _burden(self, instance: Instance, uuid: str) -> inventory.Burden:
        """Least where nothing is owed, most where it would be refused; then by faults; then by how many are there."""
        owes = 2 if isinstance(self._verdict(instance, uuid), memory_release.Short) else bool(self._debts[uuid])
        return owes, self._infirmary.count(uuid), self._workers(uuid)

    def _verdict(self, instance: Instance, word: str) -> memory_release.Wait | memory_release.Short | None:
        device = self._lookout.find(word)
        if device is None:
            return None
        spec = instance.release.spec
        need_bytes = self._needs.get((spec.name, spec.version), spec.gpu_memory_bytes)
        sight = memory_release.Sight(device, self._lookout.asked_s)
        return memory_release.verdict(need_bytes, self._debts[word], sight, time.monotonic())

    def _workers(self, word: str) -> int:
        tenures = (each.tenure for each in self._fleet.instances())
        return sum(each is not None and each.visible_devices == word for each in tenures)

    # What becomes of workers.

    def serves(self, instance: Instance) -> None:
        """It is ready: see what it holds before it can die."""
        if instance.tenure is not None and instance.tenure.visible_devices:
            self._lookout.look()

    def faulted(self, instance: Instance) -> None:
        """It left with a GPU fault."""
        assert instance.tenure is not None, f"instance {instance.id} has left nothing"
        word = instance.tenure.visible_devices
        known = inventory.named(self._lookout.gpus, word) if self._lookout.gpus is not None else None
        self._infirmary.faulted(known.uuid if known is not None else word, instance.release.spec.name)

    def ended(self, instance: Instance) -> None:
        """Its process is gone, and its device has something to give back."""
        tenure, life = instance.tenure, instance.life
        if tenure is not None and life is not None and tenure.visible_devices:
            debts = self._debts[tenure.visible_devices]
            debts.append(memory_release.Debt(life.pid, tenure.claim, time.monotonic()))
            del debts[:-DEBTS]
            self._lookout.look()

    # After a look.

    def _looked(self) -> bool:
        self._infirmary.look()
        for instance in self._fleet.instances():
            self._weigh(instance)
        for word in self._debts:
            self._settle(word)
        self._fleet.retry(inventory.NoRoom.code, self._has_room)
        waiting, self._waiting = self._waiting, set()
        for name in waiting:
            self._fleet.touch(name)
        return bool(waiting)

    def _weigh(self, instance: Instance) -> None:
        """What a worker holds now, and what a fresh one of it needs."""
        tenure, life = instance.tenure, instance.life
        device = self._lookout.find(tenure.visible_devices) if tenure is not None else None
        if tenure is None or life is None or life.dead or device is None:
            return
        tenure.claim = claim = memory_release.claim(life.pid, device, life.progress().device_bytes)
        if instance.state is State.READY and not tenure.was_weighed and claim.held_bytes:
            tenure.was_weighed = True
            self._needs[instance.release.spec.name, instance.release.spec.version] = claim.held_bytes

    def _settle(self, word: str) -> None:
        """Forget what has come back to a device, or never will."""
        device = self._lookout.find(word)
        if device is not None:
            sight = memory_release.Sight(device, self._lookout.asked_s)
            self._debts[word] = [each for each in self._debts[word] if not memory_release.is_over(each, sight)]

    def _has_room(self, instance: Instance) -> bool:
        """Whether one that was refused would not be, now."""
        try:
            self.place(instance)
        except inventory.NoGpu:
            return False
        return True

    # For people.

    def release(self, name: str) -> Json:
        """Somebody says that a device is well; CallerError if there is no such device."""
        gpus = self._lookout.gpus or inventory.Gpus((), "NVML has not answered yet")
        try:
            found = (
                [name] if name in self._infirmary.reasons else [each.uuid for each in inventory.candidates(name, gpus)]
            )
        except inventory.NoGpu as error:
            raise CallerError("bad_request", str(error)) from None
        released = [each for each in found if self._infirmary.release(each)]
        if released:
            self._fleet.retry(inventory.SetAside.code)
        return {"released": released}

    def rows(self) -> list[Json]:
        """All devices, one row each; what NVML does not say now is None."""
        gpus = self._lookout.gpus or inventory.Gpus(())
        places = {each.uuid: f"cuda:{place}" for place, each in enumerate(gpus.devices)}
        others = {word: word for word in self._infirmary.reasons if word not in places}
        return [self._row(word, device) for word, device in (places | others).items()]

    def _row(self, word: str, device: str) -> Json:
        learnt = self._lookout.gpus.find(word) if self._lookout.gpus is not None else None
        seen, asked_s = self._lookout.find(word), self._lookout.asked_s
        return {
            "device": device,
            "uuid": word,
            "name": learnt.name if learnt is not None else "",
            "set_aside": word in self._infirmary.reasons,
            "reason": self._infirmary.reasons.get(word, ""),
            "workers": self._workers(word),
            "stale": seen is None,
            "age_s": round(time.monotonic() - asked_s, 1) if asked_s else None,
            "memory_total_bytes": seen.total_bytes if seen is not None else None,
            "memory_used_bytes": seen.total_bytes - seen.free_bytes if seen is not None else None,
        }
