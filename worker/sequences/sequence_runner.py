"""Runs one request of each of some sequences together, with control inputs and states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmsup.ipc.specs import SequenceBatching
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import Arrays, split, stack
from mmsup.worker.execution.executor import Executor, Result
from mmsup.worker.execution.initial_state import initial_states
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.sequence_view import SequenceView, as_sequence_aware
from mmsup.worker.sequences import control_inputs
from mmsup.worker.sequences.live_sequence import SequenceMemory
from mmsup.worker.sequences.sequence_signature import SequenceStep

Step = tuple[int, SequenceStep, SequenceMemory]
"""Slot, step, what is kept for its sequence."""


class SequenceRunner:
    def __init__(self, executor: Executor, batching: SequenceBatching) -> None:
        self._executor = executor
        self._batching = batching
        self._is_batched = executor.metadata.max_batch_size > 0
        self._initial = initial_states(executor.spec)
        self._engine = as_sequence_aware(executor.engine)
        self._has_ready = any(each.kind == "ready" for each in batching.controls)
        self._pads = batching.strategy == "direct" and self._has_ready and self._is_batched
        """Rows are slots: those without a request are filled, and not ready."""
        self._may_repeat = bool(batching.states) and executor.spec.engine != "custom"
        self._state_outputs = [each.output for each in batching.states]

    def run(self, steps: Sequence[Step], inputs: Sequence[Arrays], wanted: Sequence[str]) -> list[Result]:
        """A result for each, in order; states are kept."""
        jobs = [self._job(step, given) for step, given in zip(steps, inputs, strict=True)]
        names = [*wanted, *self._state_outputs] if wanted else ()
        results = self._run_jobs(steps, jobs, names)
        for (_, _, memory), result in zip(steps, results, strict=True):
            if not isinstance(result, ModelFailure):
                for each in self._batching.states:
                    memory.tensors[each.input] = np.array(result.pop(each.output))
        return results

    def _job(self, step: Step, inputs: Arrays) -> Arrays:
        _, where, memory = step
        controls = control_inputs.control_arrays(self._batching.controls, where, is_batched=self._is_batched)
        return {**inputs, **controls, **self._initial, **memory.tensors}

    def _run_jobs(self, steps: Sequence[Step], jobs: Sequence[Arrays], names: Sequence[str]) -> list[Result]:
        rows = self._rows(steps, jobs)
        if len(rows) == 1:
            return [self._run_one(steps, jobs[0], names)]
        stacked = call_model_code(stack, self._executor.spec, [job for _, job in rows])
        made = (
            stacked if isinstance(stacked, ModelFailure) else self._run_one([step for step, _ in rows], stacked, names)
        )
        if isinstance(made, ModelFailure):
            if not self._may_repeat or made.is_contradiction:
                return [made] * len(jobs)
            return [self._again(step, job, names) for step, job in zip(steps, jobs, strict=True)]
        parts = split(made, [1] * len(rows))
        return [part for (step, _), part in zip(rows, parts, strict=True) if step is not None]

    def _rows(self, steps: Sequence[Step], jobs: Sequence[Arrays]) -> list[tuple[Step | None, Arrays]]:
        """What is stacked: with padding, a row for each slot up to the last that has a request."""
        own: list[tuple[Step | None, Arrays]] = [*zip(steps, jobs, strict=True)]
        if not self._pads:
            return own
        by_slot = {step[0]: (step, job) for step, job in zip(steps, jobs, strict=True)}
        blank = {name: _blank(array) for name, array in jobs[0].items()}
        blank |= control_inputs.control_arrays(self._batching.controls, None, is_batched=True)
        return [by_slot.get(slot, (None, blank)) for slot in range(max(by_slot) + 1)]

    def _again(self, step: Step, job: Arrays, names: Sequence[str]) -> Result:
        self._executor.mark_busy()
        return self._run_one([step], job, names)

    def _run_one(self, steps: Sequence[Step | None], job: Arrays, names: Sequence[str]) -> Result:
        if self._engine is not None:
            self._engine.sequences = [None if each is None else _view(each) for each in steps]
        return self._executor.run_one(job, names)


def _view(step: Step) -> SequenceView:
    _, where, memory = step
    return SequenceView(where.id, where.is_start, where.is_end, memory.for_model)


def _blank(array: Array) -> Array:
    return np.full(array.shape, b"", dtype=np.object_) if array.dtype == np.object_ else np.zeros_like(array)
