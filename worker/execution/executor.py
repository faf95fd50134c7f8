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

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, datatype_of
from mmsup.worker.execution.batch_arrays import Arrays, rows, size_bytes, split, stack
from mmsup.worker.execution.batching_benefit import ALWAYS_BATCH_BYTES, BatchingBenefit
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.engine import (
    NO_BUFFERS,
    Engine,
    OutputBuffers,
    as_batching_engine,
    as_pinned_memory_user,
    min_buffer_bytes,
)
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.execution.model_errors_guard import DeviceLost, T, call_model_code
from mmsup.worker.execution.output_shapes import OutputShapePredictor
from mmsup.worker.execution.outputs import OutputBytes, encode_outputs, output_buffers

_BUSY: Final = Activity.BUSY


class Executor:
    """One loaded engine."""

    def __init__(self, engine: Engine, spec: ModelSpec, metadata: Metadata, page: StatusPageWriter) -> None:
        self.engine = engine
        self.spec = spec
        self.metadata = metadata
        self.pinned_memory_user = as_pinned_memory_user(engine)
        """Who wants to know of gateways' memory; None for most."""
        self._page = page
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._output_names = tuple(self._datatypes)
        self._batching_engine = as_batching_engine(engine)
        self._batching_benefit = BatchingBenefit()
        self._shape_predictor = OutputShapePredictor(metadata)
        self._min_buffer_bytes = min_buffer_bytes(engine)
        self.uses_output_buffers = self._min_buffer_bytes is not None
        """Whether `room` is ever anything."""

    def output_buffers(self, job: Arrays, outputs: Sequence[str], view: memoryview | None) -> OutputBuffers:
        """Where the outputs of a job will lie in the memory that was granted for them, if this engine can use it."""
        if view is None or self._min_buffer_bytes is None or len(view) < self._min_buffer_bytes:
            return NO_BUFFERS
        return output_buffers(self._shape_predictor.predict(job, outputs or self._output_names), view)

    def run(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers] = ()
    ) -> list[Arrays | ModelFailure]:
        """One outcome for each job, in order; jobs of more than one run together. `rooms` has one for each job, or is
        empty."""
        rooms = rooms or [NO_BUFFERS] * len(jobs)
        if len(jobs) == 1:
            return [self.run_one(jobs[0], outputs, rooms[0])]
        if self._batching_engine is None and (size := size_bytes(jobs[0])) >= ALWAYS_BATCH_BYTES:
            return self._run_by_benefit(size, jobs, outputs, rooms)
        return self._run_batch(jobs, outputs, rooms)

    def _run_by_benefit(
        self, job_bytes: int, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure]:
        """The outcomes of large jobs, gathered or one by one as has paid so far; what it took is remembered."""
        count = self._batching_benefit.alone(job_bytes, len(jobs))
        began = time.monotonic_ns()
        outcomes = self._run_singly(jobs[:count], outputs, rooms[:count])
        if count and not any(isinstance(each, ModelFailure) for each in outcomes):
            took_ns = time.monotonic_ns() - began
            self._batching_benefit.on_single_runs(job_bytes, sum(map(size_bytes, jobs[:count])), took_ns)
        if count == len(jobs):
            return outcomes
        rest, began = jobs[count:], time.monotonic_ns()
        gathered = self._run_batch(rest, outputs, rooms[count:])
        gathered = [_copied_to_buffers(each, room) for each, room in zip(gathered, rooms[count:], strict=True)]
        if not any(isinstance(each, ModelFailure) for each in gathered):
            took_ns = time.monotonic_ns() - began
            self._batching_benefit.on_batch_run(job_bytes, len(rest), sum(map(size_bytes, rest)), took_ns)
        return [*outcomes, *gathered]

    def _run_batch(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure]:
        """The outcomes of one batch; of its parts if it raises."""
        run = self._run_stacked if self._batching_engine is None else self._run_by_engine
        outcomes = run(jobs, outputs, rooms)
        if not isinstance(outcomes, ModelFailure):
            return outcomes
        if outcomes.device_fault is DeviceFault.NONE:
            return self._run_singly(jobs, outputs, rooms)
        return [outcomes] * len(jobs)

    def _run_singly(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure]:
        return [self.run_one(job, outputs, room) for job, room in zip(jobs, rooms, strict=True)]

    def run_one(
        self, job: Arrays, outputs: Sequence[str] = (), room: OutputBuffers = NO_BUFFERS
    ) -> Arrays | ModelFailure:
        """The outcome of one job."""
        made = self._infer(job, outputs, room)
        if isinstance(made, ModelFailure):
            made = self._retry_for_memory(made, job, outputs, room)
            if isinstance(made, ModelFailure):
                return made
        if self.uses_output_buffers:
            self._learn_shapes([job], [made])
        return self._output_fault(made, outputs, job) or made

    def encode_outputs(self, arrays: Arrays) -> tuple[OutputBytes, ...] | ModelFailure:
        """The bytes of a good outcome. Guarded: elements of an array of objects are the model's own."""
        return call_model_code(encode_outputs, self.spec, arrays)

    def _run_stacked(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], _: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure] | ModelFailure:
        """The outcomes of one batch that is made here; a Failure if it could not run."""
        job = call_model_code(lambda: stack(jobs), self.spec)  # a batch may not fit where each of its parts does
        if isinstance(job, ModelFailure):
            return job
        whole = self._infer_with_retry(job, outputs)
        if isinstance(whole, ModelFailure):
            return whole
        sizes = [rows(each) for each in jobs]
        fault = self._output_fault(whole, outputs, job)
        if fault is not None:
            return [fault] * len(jobs)
        parts = split(whole, sizes)
        self._learn_shapes(jobs, parts)
        return [*parts]

    def _run_by_engine(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[Arrays | ModelFailure] | ModelFailure:
        """The outcomes of one batch that the engine makes; a Failure if it could not run. Device memory that was
        refused is asked for once more, by halves of the batch."""
        made = self._engine_batch(jobs, outputs, rooms)
        if isinstance(made, ModelFailure):
            if made.device_fault is not DeviceFault.MEMORY:
                return made
            self.engine.shrink()
            half = len(jobs) // 2
            first = self._engine_batch(jobs[:half], outputs, rooms[:half])
            if isinstance(first, ModelFailure):
                return first
            second = self._engine_batch(jobs[half:], outputs, rooms[half:])
            if isinstance(second, ModelFailure):
                return second
            made = [*first, *second]
        self._learn_shapes(jobs, made)
        return [self._output_fault(each, outputs, job) or each for job, each in zip(jobs, made, strict=True)]

    def _engine_batch(
        self, jobs: Sequence[Arrays], outputs: Sequence[str], rooms: Sequence[OutputBuffers]
    ) -> list[Arrays] | ModelFailure:
        engine, wanted = self._batching_engine, outputs or self._output_names
        assert engine is not None, "this engine makes no batches"
        return self._call(engine.run_batch, jobs, wanted, rooms)

    def _learn_shapes(self, jobs: Sequence[Arrays], made: Sequence[Arrays]) -> None:
        """Of large results, that is; small ones need no room."""
        if self._min_buffer_bytes is None:
            return
        for job, each in zip(jobs, made, strict=True):
            if size_bytes(each) >= self._min_buffer_bytes:
                self._shape_predictor.learn(job, each)

    def _infer_with_retry(self, job: Arrays, outputs: Sequence[str]) -> Arrays | ModelFailure:
        made = self._infer(job, outputs)
        return self._retry_for_memory(made, job, outputs, NO_BUFFERS) if isinstance(made, ModelFailure) else made

    def _retry_for_memory(
        self, failure: ModelFailure, job: Arrays, outputs: Sequence[str], room: OutputBuffers
    ) -> Arrays | ModelFailure:
        """After a failure: once more, by halves where there is a batch axis, if it was for want of device memory."""
        if failure.device_fault is not DeviceFault.MEMORY:
            return failure
        self.engine.shrink()
        size = rows(job)
        if not self.spec.max_batch_size or size < 2:
            return self._infer(job, outputs, room)
        halves: list[Arrays] = []
        for half in split(job, [size // 2, size - size // 2]):
            made = self._infer(half, outputs)
            if isinstance(made, ModelFailure):
                return made
            halves.append(made)
        return stack(halves)

    def _infer(self, job: Arrays, outputs: Sequence[str], room: OutputBuffers = NO_BUFFERS) -> Arrays | ModelFailure:
        wanted = outputs or self._output_names
        made = self._call(self.engine.infer, job, wanted, room)
        if isinstance(made, ModelFailure):
            return made
        if len(made) == len(wanted) and type(made) is dict:
            return made  # of these names, or `_fault` will say which is missing
        return {name: made[name] for name in wanted if name in made}

    def _call(self, call: Callable[..., T], *arguments: object) -> T | ModelFailure:
        """What the engine gives, with the page saying since when it is at work."""
        self._page.set_activity(_BUSY, time.monotonic_ns())
        made = call_model_code(call, self.spec, *arguments)
        if isinstance(made, ModelFailure) and made.device_fault is DeviceFault.LOST:
            raise DeviceLost(made.text)
        return made

    def _output_fault(self, made: Mapping[str, Array], outputs: Sequence[str], job: Arrays) -> ModelFailure | None:
        """What is wrong with the outputs, by what the model declares."""
        batched = self.spec.max_batch_size
        size = rows(job) if batched else 0
        for name in outputs or self._output_names:
            array = made.get(name)
            if array is not None and array.dtype is self._dtypes[name] and not batched:
                continue  # numpy has one object for each plain dtype
            text = "is declared, but was not given" if array is None else self._mismatch(name, array, size)
            if text:
                return ModelFailure("inference_failed", f"model '{self.spec.name}': output '{name}' {text}")
        return None

    def _mismatch(self, name: str, array: Array, size: int) -> str:
        datatype, declared = datatype_of(array), self._datatypes.get(name)
        if datatype != declared:
            return f"is declared as {declared}, but is {datatype or array.dtype}"
        if self.spec.max_batch_size and (not array.ndim or array.shape[0] != size):
            return f"has shape {list(array.shape)} for a batch of {size}"
        return ""


def _copied_to_buffers(made: Arrays | ModelFailure, room: OutputBuffers) -> Arrays | ModelFailure:
    """An outcome with its large arrays in their room, where they would be copied to anyway: a part of the price."""
    if isinstance(made, ModelFailure):
        return made
    for name, place in room.items():
        array = made.get(name)
        if array is not None and array is not place and (array.dtype, array.shape) == (place.dtype, place.shape):
            place[...] = array
            made[name] = place
    return made
