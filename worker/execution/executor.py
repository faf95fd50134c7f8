"""Running the model: alone or as a batch, with what is owed to each caller when it does not go well.

A batch of several that raises is run again one by one, so that only the guilty request fails. Device memory that ran
out is given back and asked for once more, by halves where there is a batch axis. Every other fault of a device ends
the process: DeviceLost goes through to `__main__`.

A batch that is made here copies its parts, so large jobs are gathered only where that pays (`payoff.py`).

Large outputs may be made in the memory that was granted for them: `room` says where, before the run, and an outcome
holds that very array where the engine used it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mmsup.ipc.memory.status_page import Activity, PageWriter
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, datatype_of
from mmsup.worker.execution.batch_arrays import Arrays, gather, rows, size_bytes, split
from mmsup.worker.execution.batching_benefit import ALWAYS_BYTES, Payoff
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.engine import NO_ROOM, Engine, Room, gathers, least_room_bytes, pins
from mmsup.worker.execution.model_errors import Failure
from mmsup.worker.execution.model_errors_guard import DeviceLost, T, guarded
from mmsup.worker.execution.output_shapes import Foresight
from mmsup.worker.execution.outputs import Output, lay_out, outputs_of

_BUSY: Final = Activity.BUSY


class Execution:
    """One loaded engine."""

    def __init__(self, engine: Engine, spec: ModelSpec, metadata: Metadata, page: PageWriter) -> None:
        self.engine = engine
        self.spec = spec
        self.metadata = metadata
        self.pinning = pins(engine)
        """Who wants to know of gateways' memory; None for most."""
        self._page = page
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._all = tuple(self._datatypes)
        self._gathering = gathers(engine)
        self._payoff = Payoff()
        self._foresight = Foresight(metadata)
        self._least_room = least_room_bytes(engine)
        self.uses_room = self._least_room is not None
        """Whether `room` is ever anything."""

    def room(self, job: Arrays, outputs: Sequence[str], view: memoryview | None) -> Room:
        """Where the outputs of a job will lie in the memory that was granted for them, if this engine can use it."""
        if view is None or self._least_room is None or len(view) < self._least_room:
            return NO_ROOM
        return lay_out(self._foresight.outputs(job, outputs or self._all), view)

    def run(self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room] = ()) -> list[Arrays | Failure]:
        """One outcome for each job, in order; jobs of more than one run together. `rooms` has one for each job, or is
        empty."""
        rooms = rooms or [NO_ROOM] * len(jobs)
        if len(jobs) == 1:
            return [self.run_once(jobs[0], outputs, rooms[0])]
        if self._gathering is None and (size := size_bytes(jobs[0])) >= ALWAYS_BYTES:
            return self._weighed(size, jobs, outputs, rooms)
        return self._together(jobs, outputs, rooms)

    def _weighed(
        self, job_bytes: int, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room]
    ) -> list[Arrays | Failure]:
        """The outcomes of large jobs, gathered or one by one as has paid so far; what it took is remembered."""
        count = self._payoff.alone(job_bytes, len(jobs))
        began = time.monotonic_ns()
        outcomes = self._apart(jobs[:count], outputs, rooms[:count])
        if count and not any(isinstance(each, Failure) for each in outcomes):
            took_ns = time.monotonic_ns() - began
            self._payoff.ran_alone(job_bytes, sum(map(size_bytes, jobs[:count])), took_ns)
        if count == len(jobs):
            return outcomes
        rest, began = jobs[count:], time.monotonic_ns()
        gathered = self._together(rest, outputs, rooms[count:])
        gathered = [_moved(each, room) for each, room in zip(gathered, rooms[count:], strict=True)]
        if not any(isinstance(each, Failure) for each in gathered):
            took_ns = time.monotonic_ns() - began
            self._payoff.ran_gathered(job_bytes, len(rest), sum(map(size_bytes, rest)), took_ns)
        return [*outcomes, *gathered]

    def _together(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room]
    ) -> list[Arrays | Failure]:
        """The outcomes of one batch; of its parts if it raises."""
        run = self._gathered if self._gathering is None else self._handed_over
        outcomes = run(jobs, outputs, rooms)
        if not isinstance(outcomes, Failure):
            return outcomes
        if outcomes.device is DeviceFault.NONE:
            return self._apart(jobs, outputs, rooms)
        return [outcomes] * len(jobs)

    def _apart(self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room]) -> list[Arrays | Failure]:
        return [self.run_once(job, outputs, room) for job, room in zip(jobs, rooms, strict=True)]

    def run_once(self, job: Arrays, outputs: Sequence[str] = (), room: Room = NO_ROOM) -> Arrays | Failure:
        """The outcome of one job."""
        made = self._infer(job, outputs, room)
        if isinstance(made, Failure):
            made = self._try_again(made, job, outputs, room)
            if isinstance(made, Failure):
                return made
        if self.uses_room:
            self._learn([job], [made])
        return self._fault(made, outputs, job) or made

    def outputs(self, arrays: Arrays) -> tuple[Output, ...] | Failure:
        """The bytes of a good outcome. Guarded: elements of an array of objects are the model's own."""
        return guarded(outputs_of, self.spec, arrays)

    def _gathered(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], _: Sequence[Room]
    ) -> list[Arrays | Failure] | Failure:
        """The outcomes of one batch that is made here; a Failure if it could not run."""
        job = guarded(lambda: gather(jobs), self.spec)  # a batch may not fit where each of its parts does
        if isinstance(job, Failure):
            return job
        whole = self._try(job, outputs)
        if isinstance(whole, Failure):
            return whole
        sizes = [rows(each) for each in jobs]
        fault = self._fault(whole, outputs, job)
        if fault is not None:
            return [fault] * len(jobs)
        parts = split(whole, sizes)
        self._learn(jobs, parts)
        return [*parts]

    def _handed_over(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room]
    ) -> list[Arrays | Failure] | Failure:
        """The outcomes of one batch that the engine makes; a Failure if it could not run. Device memory that was
        refused is asked for once more, by halves of the batch."""
        made = self._hand_over(jobs, outputs, rooms)
        if isinstance(made, Failure):
            if made.device is not DeviceFault.MEMORY:
                return made
            self.engine.shrink()
            half = len(jobs) // 2
            first = self._hand_over(jobs[:half], outputs, rooms[:half])
            if isinstance(first, Failure):
                return first
            second = self._hand_over(jobs[half:], outputs, rooms[half:])
            if isinstance(second, Failure):
                return second
            made = [*first, *second]
        self._learn(jobs, made)
        return [self._fault(each, outputs, job) or each for job, each in zip(jobs, made, strict=True)]

    def _hand_over(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[Room]
    ) -> list[Arrays] | Failure:
        engine, wanted = self._gathering, outputs or self._all
        assert engine is not None, "this engine makes no batches"
        return self._call(engine.run_batch, jobs, wanted, rooms)

    def _learn(self, jobs: Sequence[Arrays], made: Sequence[Arrays]) -> None:
        """Of large results, that is; small ones need no room."""
        if self._least_room is None:
            return
        for job, each in zip(jobs, made, strict=True):
            if size_bytes(each) >= self._least_room:
                self._foresight.learn(job, each)

    def _try(self, job: Arrays, outputs: Sequence[str]) -> Arrays | Failure:
        made = self._infer(job, outputs)
        return self._try_again(made, job, outputs, NO_ROOM) if isinstance(made, Failure) else made

    def _try_again(self, failure: Failure, job: Arrays, outputs: Sequence[str], room: Room) -> Arrays | Failure:
        """After a failure: once more, by halves where there is a batch axis, if it was for want of device memory."""
        if failure.device is not DeviceFault.MEMORY:
            return failure
        self.engine.shrink()
        size = rows(job)
        if not self.spec.max_batch_size or size < 2:
            return self._infer(job, outputs, room)
        halves: list[Arrays] = []
        for half in split(job, [size // 2, size - size // 2]):
            made = self._infer(half, outputs)
            if isinstance(made, Failure):
                return made
            halves.append(made)
        return gather(halves)

    def _infer(self, job: Arrays, outputs: Sequence[str], room: Room = NO_ROOM) -> Arrays | Failure:
        wanted = outputs or self._all
        made = self._call(self.engine.infer, job, wanted, room)
        if isinstance(made, Failure):
            return made
        if len(made) == len(wanted) and type(made) is dict:
            return made  # of these names, or `_fault` will say which is missing
        return {name: made[name] for name in wanted if name in made}

    def _call(self, call: Callable[..., T], *arguments: object) -> T | Failure:
        """What the engine gives, with the page saying since when it is at work."""
        self._page.enter(_BUSY, time.monotonic_ns())
        made = guarded(call, self.spec, *arguments)
        if isinstance(made, Failure) and made.device is DeviceFault.LOST:
            raise DeviceLost(made.text)
        return made

    def _fault(self, made: Mapping[str, Array], outputs: Sequence[str], job: Arrays) -> Failure | None:
        """What is wrong with the outputs, by what the model declares."""
        batched = self.spec.max_batch_size
        size = rows(job) if batched else 0
        for name in outputs or self._all:
            array = made.get(name)
            if array is not None and array.dtype is self._dtypes[name] and not batched:
                continue  # numpy has one object for each plain dtype
            text = "is declared, but was not given" if array is None else self._misfit(name, array, size)
            if text:
                return Failure("inference_failed", f"model '{self.spec.name}': output '{name}' {text}")
        return None

    def _misfit(self, name: str, array: Array, size: int) -> str:
        datatype, declared = datatype_of(array), self._datatypes.get(name)
        if datatype != declared:
            return f"is declared as {declared}, but is {datatype or array.dtype}"
        if self.spec.max_batch_size and (not array.ndim or array.shape[0] != size):
            return f"has shape {list(array.shape)} for a batch of {size}"
        return ""


def _moved(made: Arrays | Failure, room: Room) -> Arrays | Failure:
    """An outcome with its large arrays in their room, where they would be copied to anyway: a part of the price."""
    if isinstance(made, Failure):
        return made
    for name, place in room.items():
        array = made.get(name)
        if array is not None and array is not place and (array.dtype, array.shape) == (place.dtype, place.shape):
            place[...] = array
            made[name] = place
    return made
