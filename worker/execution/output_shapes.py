"""What the outputs of a run will be, as far as that can be known before it. Pure.

A shape that is declared without a gap is known. Any other is what it was when the inputs last had the same shapes: true
of nearly every graph, and never relied on (see `engines/contract.py`, Room).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from mmsup.ipc.specs import Metadata
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import rows
from mmsup.worker.execution.outputs import PredictedOutput

SHAPES_LIMIT: Final = 64
"""Sets of input shapes that are remembered, the latest used."""

Shape = tuple[int, ...]


class OutputShapePredictor:
    """Told of each run; asked before the next."""

    def __init__(self, metadata: Metadata) -> None:
        self._batches = metadata.max_batch_size > 0
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._fixed = {each.name: each.shape for each in metadata.outputs if -1 not in each.shape}
        self._open = [name for name in self._datatypes if name not in self._fixed]
        self._seen: OrderedDict[tuple[Shape, ...], dict[str, Shape]] = OrderedDict()

    def predict(self, job: Mapping[str, Array], wanted: Sequence[str]) -> list[PredictedOutput]:
        """The outputs wanted, in their order, up to the first of which nothing is known."""
        batch = (rows(job),) if self._batches else ()
        seen = self._seen.get(_shapes(job), {}) if self._open else {}
        foreseen: list[PredictedOutput] = []
        for name in wanted:
            fixed = self._fixed.get(name)
            shape = seen.get(name) if fixed is None else (*batch, *fixed)
            if shape is None:
                break
            foreseen.append((name, self._datatypes[name], shape))
        return foreseen

    def learn(self, job: Mapping[str, Array], made: Mapping[str, Array]) -> None:
        """A run of this job gave these outputs."""
        if not self._open:
            return
        key = _shapes(job)
        seen = self._seen.setdefault(key, {})
        seen.update({name: made[name].shape for name in self._open if name in made})
        self._seen.move_to_end(key)
        if len(self._seen) > SHAPES_LIMIT:
            self._seen.popitem(last=False)


def _shapes(job: Mapping[str, Array]) -> tuple[Shape, ...]:
    """The shapes of the inputs, in the order of their names."""
    if len(job) == 1:
        return tuple([each.shape for each in job.values()])
    return tuple([job[name].shape for name in sorted(job)])
