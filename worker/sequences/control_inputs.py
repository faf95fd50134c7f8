"""The arrays of control inputs, by which a model is told where in its sequence a request is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from mmsup.ipc.specs import SequenceControl
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.sequences.sequence_signature import SequenceId, SequenceStep

_NO_STEP: Final = SequenceStep(0)


def control_arrays(controls: Iterable[SequenceControl], step: SequenceStep | None, *, is_batched: bool) -> Arrays:
    """One element each. `step`: None for a row that holds no request."""
    shape = (1, 1) if is_batched else (1,)
    given = step or _NO_STEP
    truths = {"start": given.is_start, "end": given.is_end, "ready": step is not None}
    return {
        each.input: _id_array(each, given.id, shape)
        if each.kind == "id"
        else np.full(shape, each.yes if truths[each.kind] else each.no, dtype=NUMPY[each.datatype])
        for each in controls
    }


def _id_array(control: SequenceControl, number: SequenceId, shape: tuple[int, ...]) -> Array:
    if control.datatype != "BYTES":
        return np.full(shape, number or 0, dtype=NUMPY[control.datatype])
    return np.full(shape, str(number).encode() if number else b"", dtype=np.object_)


def id_problem(controls: Iterable[SequenceControl], number: SequenceId) -> str:
    """Why the model cannot be told this id; empty if it can."""
    for each in controls:
        if each.kind != "id" or each.datatype == "BYTES":
            continue
        if isinstance(number, str):
            return f"is a string, and the model takes it as {each.datatype}: use a number"
        limits = np.iinfo(NUMPY[each.datatype])
        if not limits.min <= number <= limits.max:
            return f"is beyond the range of {each.datatype}, as which the model takes it"
    return ""
