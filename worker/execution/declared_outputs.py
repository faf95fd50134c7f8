"""The outputs that a model declares, and the check of a result against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array, datatype_of
from mmsup.worker.execution.batch_arrays import rows
from mmsup.worker.execution.model_errors import ModelFailure


class DeclaredOutputs:
    def __init__(self, spec: ModelSpec, metadata: Metadata) -> None:
        self._model = spec.name
        self._is_batched = spec.max_batch_size > 0
        self._datatypes = {each.name: each.datatype for each in metadata.outputs}
        self._dtypes = {each.name: NUMPY[each.datatype] for each in metadata.outputs}
        self.names = tuple(self._datatypes)

    def failure(
        self, result: Mapping[str, Array], wanted: Sequence[str], inputs: Mapping[str, Array]
    ) -> ModelFailure | None:
        """What is wrong with the wanted outputs (all if empty), for inputs of that many rows; None if they are good."""
        batched = self._is_batched
        size = rows(inputs) if batched else 0
        for name in wanted or self.names:
            array = result.get(name)
            if array is not None and array.dtype is self._dtypes[name] and not batched:
                continue  # numpy has one object for each plain dtype
            text = "is declared, but was not given" if array is None else self._mismatch(name, array, size)
            if text:
                text = f"model '{self._model}': output '{name}' {text}"
                return ModelFailure("inference_failed", text, is_contradiction=True)
        return None

    def part_failure(self, part: Mapping[str, Array]) -> ModelFailure | None:
        """The same for one of many responses: it may leave outputs out, and have as many rows as it likes."""
        for name, array in part.items():
            datatype, declared = datatype_of(array), self._datatypes.get(name)
            text = f"is declared as {declared}, but is {datatype or array.dtype}" if datatype != declared else ""
            if text:
                text = f"model '{self._model}': output '{name}' {text}"
                return ModelFailure("inference_failed", text, is_contradiction=True)
        return None

    def _mismatch(self, name: str, array: Array, size: int) -> str:
        datatype, declared = datatype_of(array), self._datatypes.get(name)
        if datatype != declared:
            return f"is declared as {declared}, but is {datatype or array.dtype}"
        if self._is_batched and (not array.ndim or array.shape[0] != size):
            return f"has shape {list(array.shape)} for a batch of {size}"
        return ""
