"""Measures what each worker holds, and keeps what its model version was measured to need (capacity/footprint.py).

`observe` is called once a second for each instance by the memory sampler, and when a worker has become ready. A worker
that loads is read each time, one that serves ever less often: its control group is a few small files, but without one
the kernel walks all pages of the process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from mmsup.supervisor.capacity.footprint import Footprint, FootprintKey, artifact_bytes, footprint_key
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.processes import usage

MAX_INTERVAL_S: Final = 30.0
INTERVAL_SHARE: Final = 0.1
"""Of the time that it has served: the pause until it is measured again."""
WRITE_INTERVAL_S: Final = 5.0
_MAX_ARTIFACTS: Final = 4096


@dataclass(slots=True)
class _Reading:
    """Of one worker process."""

    generation: int
    saw_load: bool
    """False if it was ready when this controller first saw it: what it held at first is unknown."""
    held_bytes: int = 0
    is_used: bool = False
    """It had answered requests when it was measured last."""
    next_s: float = 0.0
    footprint: Footprint = field(default_factory=Footprint)


class FootprintMeter:
    def __init__(
        self,
        store: FootprintStore,
        digest_of: Callable[[Instance], str],
        run_on_disk: Callable[[Callable[[bytes], None], bytes], object],
    ) -> None:
        """`digest_of`: of the files that an instance is made from. `run_on_disk`: run a function in the disk thread."""
        self._store = store
        self.contexts = store.contexts
        self._digest_of = digest_of
        self._run_on_disk = run_on_disk
        self._readings: dict[int, _Reading] = {}
        self._artifacts: dict[tuple[str, str], int] = {}
        """Bytes of the files of a version, by folder and digest."""
        self._is_changed = False
        self._written_s = 0.0

    def observe(self, instance: Instance) -> None:
        """Measure the worker of an instance if it is time."""
        worker, process = instance.worker, instance.process
        if worker is None or process is None or process.is_dead:
            self._readings.pop(instance.id, None)
            self._write_if_due()
            return
        reading, now_s = self._reading(instance), time.monotonic()
        is_settled = instance.state is InstanceState.READY and reading.footprint.settled_bytes
        if now_s < reading.next_s and (is_settled or instance.state is InstanceState.OFFLOADED):
            return
        held = usage.held_bytes(worker.group, process.pid)
        if held is None:
            return
        held //= worker.sharers  # of a co-location group nobody can tell what is whose
        reading.held_bytes = held
        if instance.state in STARTING_UP:
            reading.footprint = _raised(reading.footprint, held, worker.gpu.usage.held_bytes, is_load=True)
        elif instance.state is InstanceState.READY:
            reading.is_used = process.progress().requests > 0
            served_s = now_s - worker.ready_s
            reading.next_s = now_s + min(served_s * INTERVAL_SHARE, MAX_INTERVAL_S)
            self._measure_ready(instance, reading)
        elif instance.state is InstanceState.OFFLOADED:
            reading.next_s = now_s + MAX_INTERVAL_S
            self._put(instance, Footprint(offloaded_bytes=held, gpu_offloaded_bytes=worker.gpu.usage.held_bytes))
        self._write_if_due()

    def note_move(self, instance: Instance, took_s: float) -> None:
        """Its model was offloaded or restored, as its state says, in so many seconds."""
        self._reading(instance).next_s = 0.0
        self.observe(instance)
        if instance.state is InstanceState.READY and took_s:
            self._put(instance, Footprint(restore_s=took_s))

    def note_context(self, names: Iterable[str], held_bytes: int, allocated_bytes: int) -> None:
        """As CudaContexts has it."""
        self._is_changed |= self.contexts.note(names, held_bytes, allocated_bytes)

    def forget_others(self, instances: Iterable[Instance]) -> None:
        """Forget the workers of instances that are not among these: they have left."""
        self._readings = {each.id: self._readings[each.id] for each in instances if each.id in self._readings}

    def held_bytes(self, instance: Instance) -> int:
        """What its worker held when it was last measured; 0 if it was not. Until it has answered requests, which takes
        memory too, at least what it held then in an earlier life; not in a group, whose others it may have had then."""
        reading = self._readings.get(instance.id)
        if reading is None or reading.generation != instance.generation:
            return 0
        is_new = reading.footprint.settled_bytes and not reading.is_used and not instance.revision.spec.group
        known = self.find(instance) if is_new else None
        is_same_way = known is not None and known.is_forked is reading.footprint.is_forked
        return max(reading.held_bytes, known.used_bytes if known is not None and is_same_way else 0)

    def find(self, instance: Instance) -> Footprint | None:
        """What a worker like this one was measured to need; None if the files have changed since, or never."""
        return self._store.get(footprint_key(instance.revision.spec), self._digest_of(instance))

    def artifact_bytes(self, instance: Instance) -> int:
        directory = instance.revision.spec.directory
        known = directory, self._digest_of(instance)
        if known not in self._artifacts:
            if len(self._artifacts) >= _MAX_ARTIFACTS:
                self._artifacts.clear()
            self._artifacts[known] = artifact_bytes(directory)
        return self._artifacts[known]

    def of_model(self, name: str) -> dict[FootprintKey, Footprint]:
        return {key: each.footprint for key, each in self._store.of_model(name).items()}

    def used_bytes(self) -> dict[str, int]:
        """By model, what its versions hold together when they serve, one worker each; of those that were measured."""
        found = defaultdict[str, int](int)
        for key, footprint in self._store.footprints():
            found[key.model] += footprint.used_bytes
        return found

    def close(self) -> None:
        if self._is_changed:
            self._store.write(self._store.contents())

    def _reading(self, instance: Instance) -> _Reading:
        reading = self._readings.get(instance.id)
        if reading is None or reading.generation != instance.generation:
            is_new = instance.state in STARTING_UP
            reading = self._readings[instance.id] = _Reading(instance.generation, saw_load=is_new)
        return reading

    def _measure_ready(self, instance: Instance, reading: _Reading) -> None:
        worker, known = instance.require_worker(), self.find(instance)
        gpu_bytes = worker.gpu.usage.held_bytes
        first = not reading.footprint.settled_bytes
        if first and not reading.saw_load and known is not None:
            reading.footprint = known
        elif first:
            assert instance.process is not None, f"instance {instance.id} is ready without a process"
            peak = reading.held_bytes + usage.released_bytes(instance.process.pid)
            settled = _settled(reading, max(peak, reading.footprint.load_peak_bytes), worker.load_s)
            reading.footprint = replace(settled, is_forked=instance.is_forked)
        reading.footprint = _raised(reading.footprint, reading.held_bytes, gpu_bytes, is_load=False)
        latest = reading.footprint if known is None else known.followed_by(reading.footprint)
        if known is None or not latest.is_near(known):
            self._store.put(footprint_key(instance.revision.spec), self._digest_of(instance), latest)
            self._is_changed = True

    def _put(self, instance: Instance, moved: Footprint) -> None:
        """What was measured of a move, beside what is known of the model. Of a load nothing is known: there is none."""
        known = self.find(instance)
        if known is None:
            return
        latest = known.with_move(moved)
        if not latest.is_near(known):
            self._store.put(footprint_key(instance.revision.spec), self._digest_of(instance), latest)
            self._is_changed = True

    def _write_if_due(self) -> None:
        if self._is_changed and time.monotonic() >= self._written_s + WRITE_INTERVAL_S:
            self._is_changed = False
            self._written_s = time.monotonic()
            self._run_on_disk(self._store.write, self._store.contents())


def _settled(reading: _Reading, peak_bytes: int, load_s: float) -> Footprint:
    found = reading.footprint
    return Footprint(peak_bytes, reading.held_bytes, reading.held_bytes, found.gpu_load_peak_bytes, load_s=load_s)


def _raised(footprint: Footprint, held_bytes: int, gpu_bytes: int, *, is_load: bool) -> Footprint:
    """With the peaks raised to what is held now; what a device is seen to hold first of a ready worker is settled."""
    if is_load:
        load_peak, gpu_load_peak = (
            max(footprint.load_peak_bytes, held_bytes),
            max(footprint.gpu_load_peak_bytes, gpu_bytes),
        )
        return replace(footprint, load_peak_bytes=load_peak, gpu_load_peak_bytes=gpu_load_peak)
    return replace(
        footprint,
        serving_peak_bytes=max(footprint.serving_peak_bytes, held_bytes),
        gpu_settled_bytes=footprint.gpu_settled_bytes or gpu_bytes,
        gpu_load_peak_bytes=max(footprint.gpu_load_peak_bytes, footprint.gpu_settled_bytes or gpu_bytes),
        gpu_serving_peak_bytes=max(footprint.gpu_serving_peak_bytes, gpu_bytes),
    )
