"""Runs the engine on one request or on a batch, and gives each request a result of its own when a run fails.

A batch that raises is run again one request at a time, so that only the guilty request fails. When device memory runs
out, the engine's cache is freed and the run is tried once more, by halves where there is a batch axis. Any other fault
of a device ends the process: DeviceLost propagates to `__main__`.

A batch that is stacked here copies its parts, so large requests are batched only where that pays (batching_benefit.py).

Large outputs may be made in the buffer that was granted for them: `output_buffers` says where, before the run, and a
result holds that very array where the engine used it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays, rows, size_bytes, split, stack
from mmsup.worker.execution.batching_benefit import ALWAYS_BATCH_BYTES, BatchingBenefit
from mmsup.worker.execution.declared_outputs import DeclaredOutputs
from mmsup.worker.execution.device_errors import DeviceFault
from mmsup.worker.execution.engine import (
    NO_BUFFERS,
    BatchingEngine,
    Engine,
    OutputBuffers,
    as_batching_engine,
    min_buffer_bytes,
    pinned_memory_of,
)
from mmsup.worker.execution.model_errors import DeviceLost, ModelFailure, call_model_code, caught
from mmsup.worker.execution.output_shapes import OutputShapePredictor
from mmsup.worker.execution.outputs import lay_out_buffers

Result = Arrays | ModelFailure


class Executor:
    """One loaded engine. The caller of a run writes BUSY to the status page before it; each further call of the
    engine for the same run writes it again here, since every call may take the whole hang limit."""

    def __init__(self, engine: Engine, spec: ModelSpec, metadata: Metadata, page: StatusPageWriter) -> None:
        self.engine = engine
        self.spec = spec
        self.metadata = metadata
        self.pinned_memory = pinned_memory_of(engine)
        self._page = page
        self._declared = DeclaredOutputs(spec, metadata)
        self._batching_engine = as_batching_engine(engine)
        self._batching_benefit = BatchingBenefit()
        self._shape_predictor = OutputShapePredictor(metadata)
        self._min_buffer_bytes = min_buffer_bytes(engine)
        self.uses_output_buffers = self._min_buffer_bytes is not None
        self.stacks_batches = self._batching_engine is None
        """Whether batches are stacked here, and not by the engine."""

    def output_buffers(self, inputs: Arrays, wanted: Sequence[str], view: memoryview | None) -> OutputBuffers:
        """Where in `view` the outputs of a run will be placed, as far as that is known and this engine can use it."""
        if view is None or self._min_buffer_bytes is None or len(view) < self._min_buffer_bytes:
            return NO_BUFFERS
        return lay_out_buffers(self._shape_predictor.predict(inputs, wanted or self._declared.names), view)

    def mark_busy(self) -> None:
        self._page.set_activity(Activity.BUSY, time.monotonic_ns())

    def run(self, jobs: Sequence[Arrays], wanted: Sequence[str], buffers: Sequence[OutputBuffers] = ()) -> list[Result]:
        """One result for each job, in order. `wanted`: names of outputs, empty for all; `buffers`: one for each job,
        or none."""
        buffers = buffers or [NO_BUFFERS] * len(jobs)
        if len(jobs) == 1:
            return [self.run_one(jobs[0], wanted, buffers[0])]
        if self._batching_engine is None and (size := size_bytes(jobs[0])) >= ALWAYS_BATCH_BYTES:
            return self._run_by_benefit(size, jobs, wanted, buffers)
        return self._run_batch(jobs, wanted, buffers)

    def _run_by_benefit(
        self, job_bytes: int, jobs: Sequence[Arrays], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Result]:
        """Run large jobs as a batch or one at a time, whichever was quicker lately, and record the time."""
        count = self._batching_benefit.single_runs(job_bytes, len(jobs))
        began_ns = time.monotonic_ns()
        results = self._run_singly(jobs[:count], wanted, buffers[:count])
        if count and not any(isinstance(each, ModelFailure) for each in results):
            took_ns = time.monotonic_ns() - began_ns
            self._batching_benefit.on_single_runs(job_bytes, sum(map(size_bytes, jobs[:count])), took_ns)
        if count == len(jobs):
            return results
        self.mark_busy()
        others, began_ns = jobs[count:], time.monotonic_ns()
        batched = self._run_batch(others, wanted, buffers[count:])
        batched = [_copied_to_buffers(each, into) for each, into in zip(batched, buffers[count:], strict=True)]
        if not any(isinstance(each, ModelFailure) for each in batched):
            took_ns = time.monotonic_ns() - began_ns
            self._batching_benefit.on_batch_run(job_bytes, len(others), sum(map(size_bytes, others)), took_ns)
        return [*results, *batched]

    def _run_batch(
        self, jobs: Sequence[Arrays], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Result]:
        """The results of one batch; of its jobs one at a time if it raises."""
        run = self._run_stacked if self._batching_engine is None else self._run_by_engine
        results = run(jobs, wanted, buffers)
        if not isinstance(results, ModelFailure):
            return results
        if results.device_fault is DeviceFault.NONE:
            return self._run_singly(jobs, wanted, buffers)
        return [results] * len(jobs)

    def _run_singly(
        self, jobs: Sequence[Arrays], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Result]:
        results: list[Result] = []
        for inputs, into in zip(jobs, buffers, strict=True):
            self.mark_busy()
            results.append(self.run_one(inputs, wanted, into))
        return results

    def run_one(self, inputs: Arrays, wanted: Sequence[str] = (), buffers: OutputBuffers = NO_BUFFERS) -> Result:
        return self.checked(self._infer(inputs, wanted, buffers), inputs, wanted, buffers)

    def checked(
        self, result: Result, inputs: Arrays, wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Result:
        """What `run_one` gives where the engine gave this: another run after a failure for want of device memory, or a
        failure for outputs that are not as declared."""
        if isinstance(result, ModelFailure):
            result = self._retry_for_memory(result, inputs, wanted, buffers)
            if isinstance(result, ModelFailure):
                return result
        if self.uses_output_buffers:
            self._learn_shapes(inputs, result)
        return self._declared.failure(result, wanted, inputs) or result

    def _run_stacked(
        self, jobs: Sequence[Arrays], wanted: Sequence[str], _: Sequence[OutputBuffers]
    ) -> list[Result] | ModelFailure:
        """The results of one batch that is stacked here; a failure if it could not run as a whole."""
        inputs = call_model_code(stack, self.spec, jobs)  # a batch may not fit into memory where each of its jobs does
        if isinstance(inputs, ModelFailure):
            return inputs
        result = self.checked(self._infer(inputs, wanted), inputs, wanted)
        if isinstance(result, ModelFailure):
            return [result] * len(jobs) if result.is_contradiction else result
        parts = split(result, [rows(each) for each in jobs])
        for job, part in zip(jobs, parts, strict=True):
            self._learn_shapes(job, part)
        return [*parts]

    def run_stacked(self, inputs: Arrays, sizes: Sequence[int], wanted: Sequence[str]) -> Arrays | list[Result]:
        """The same for jobs of so many rows each that are stacked already: their outputs, stacked too; or a result for
        each job, if they could not run as a whole."""
        result = self.checked(self._infer(inputs, wanted), inputs, wanted)
        if not isinstance(result, ModelFailure):
            return result
        if result.is_contradiction or result.device_fault is not DeviceFault.NONE:
            return [result] * len(sizes)
        return self._run_singly(split(inputs, sizes), wanted, [NO_BUFFERS] * len(sizes))

    def _run_by_engine(
        self, jobs: Sequence[Arrays], wanted: Sequence[str], buffers: Sequence[OutputBuffers]
    ) -> list[Result] | ModelFailure:
        """The results of one batch that the engine assembles; a failure if it could not run as a whole. If device
        memory runs out, it is run once more by halves."""
        engine, names = self._batching_engine, wanted or self._declared.names
        assert engine is not None, "this engine assembles no batches"
        results = _infer_batch(engine, self.spec, jobs, names, buffers)
        if isinstance(results, ModelFailure):
            if results.device_fault is not DeviceFault.MEMORY:
                return results
            self.engine.shrink()
            half = len(jobs) // 2
            results = list[Result]()
            for part in (slice(half), slice(half, None)):
                self.mark_busy()
                made = _infer_batch(engine, self.spec, jobs[part], names, buffers[part])
                if isinstance(made, ModelFailure):
                    return made
                results += made
        for at, (job, result) in enumerate(zip(jobs, results, strict=True)):
            if not isinstance(result, ModelFailure):
                self._learn_shapes(job, result)
                results[at] = self._declared.failure(result, wanted, job) or result
        return results

    def _learn_shapes(self, inputs: Arrays, result: Arrays) -> None:
        """Of large results; small ones need no buffer."""
        if self._min_buffer_bytes is not None and size_bytes(result) >= self._min_buffer_bytes:
            self._shape_predictor.learn(inputs, result)

    def _retry_for_memory(
        self, failure: ModelFailure, inputs: Arrays, wanted: Sequence[str], buffers: OutputBuffers
    ) -> Result:
        """After a failure for want of device memory: run once more, by halves where there is a batch axis."""
        if failure.device_fault is not DeviceFault.MEMORY:
            return failure
        self.engine.shrink()
        size = rows(inputs)
        if not self.spec.max_batch_size or size < 2:
            self.mark_busy()
            return self._infer(inputs, wanted, buffers)
        halves: list[Arrays] = []
        for half in split(inputs, [size // 2, size - size // 2]):
            self.mark_busy()
            result = self._infer(half, wanted)
            if isinstance(result, ModelFailure):
                return result
            halves.append(result)
        return stack(halves)

    def _infer(self, inputs: Arrays, wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS) -> Result:
        names = wanted or self._declared.names
        try:
            made = self.engine.infer(inputs, names, buffers)
        except BaseException as error:  # noqa: BLE001 - a model may raise anything, asyncio's CancelledError too
            return failure_of_run(error, self.spec)
        return only_wanted(made, names)


def only_wanted(made: Mapping[str, Array], names: Sequence[str]) -> Arrays:
    """The outputs of these names, as far as they were made."""
    if len(made) == len(names) and type(made) is dict:
        return made  # of these names, or DeclaredOutputs finds which is missing
    return {name: made[name] for name in names if name in made}


def _infer_batch(
    engine: BatchingEngine,
    spec: ModelSpec,
    jobs: Sequence[Arrays],
    wanted: Sequence[str],
    buffers: Sequence[OutputBuffers],
) -> list[Result] | ModelFailure:
    try:
        return [*engine.run_batch(jobs, wanted, buffers)]
    except BaseException as error:  # noqa: BLE001 - as in `_infer`
        return failure_of_run(error, spec)


def failure_of_run(error: BaseException, spec: ModelSpec) -> ModelFailure:
    """Of a run of the engine that raised this; raises where the process must end by it."""
    found = caught(error, spec)
    if found.device_fault is DeviceFault.LOST:
        raise DeviceLost(found.text) from error
    return found


def _copied_to_buffers(result: Result, buffers: OutputBuffers) -> Result:
    """A result with its large arrays in their buffers. They would be copied there anyway, so the copy belongs to the
    measured time of a batch."""
    if isinstance(result, ModelFailure):
        return result
    for name, into in buffers.items():
        array = result.get(name)
        if array is not None and array is not into and (array.dtype, array.shape) == (into.dtype, into.shape):
            into[...] = array
            result[name] = into
    return result
