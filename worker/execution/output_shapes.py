"""Predicts names, datatypes and shapes of a run's outputs, so that the engine can write them where they are sent from.
Pure.

A shape that is declared in full is known. Any other is predicted to be what it was when the inputs last had the same
shapes: true of nearly every graph, and never relied on (see "Output buffers" in engine.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from mmsup.ipc.specs import Metadata
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.batch_arrays import rows
from mmsup.worker.execution.outputs import PredictedOutput, Shape

SHAPES_LIMIT: Final = 64
"""Sets of input shapes that are remembered, least recently used first out."""


class OutputShapePredictor:
    def __init__(self, metadata: Metadata) -> None:
        self._is_batched = metadata.max_batch_size > 0
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._fixed = {each.name: each.shape for each in metadata.outputs if -1 not in each.shape}
        self._open = [name for name in self._datatypes if name not in self._fixed]
        self._learned: OrderedDict[tuple[Shape, ...], dict[str, Shape]] = OrderedDict()

    def predict(self, inputs: Mapping[str, Array], wanted: Sequence[str]) -> list[PredictedOutput]:
        """The wanted outputs, in their order, up to the first that is unknown."""
        batch = (rows(inputs),) if self._is_batched else ()
        learned = self._learned.get(_shapes(inputs), {}) if self._open else {}
        predicted: list[PredictedOutput] = []
        for name in wanted:
            fixed = self._fixed.get(name)
            shape = learned.get(name) if fixed is None else (*batch, *fixed)
            if shape is None:
                break
            predicted.append((name, self._datatypes[name], shape))
        return predicted

    def learn(self, inputs: Mapping[str, Array], result: Mapping[str, Array]) -> None:
        """Record the shapes of a result."""
        if not self._open:
            return
        key = _shapes(inputs)
        learned = self._learned.setdefault(key, {})
        learned.update({name: result[name].shape for name in self._open if name in result})
        self._learned.move_to_end(key)
        if len(self._learned) > SHAPES_LIMIT:
            self._learned.popitem(last=False)


def _shapes(inputs: Mapping[str, Array]) -> tuple[Shape, ...]:
    """The shapes of the inputs, in the order of their names."""
    if len(inputs) == 1:
        return tuple([each.shape for each in inputs.values()])
    return tuple([inputs[name].shape for name in sorted(inputs)])
